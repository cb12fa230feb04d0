"""`sqs send`: sends plain JSON messages, after it has checked all of them."""

import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any

import click
from celery.exceptions import QueueNotFound
from pydantic import ValidationError

from app.messages import PlainJson, field_faults, fields_of, read_strictly, unknown_fields
from sqs_broker.errors import Undecodable
from sqs_broker.options import Options
from sqs_broker.rules.attributes import size
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Source
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.publisher import Batch, Published
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.tools.broker import driver_of, options_of
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import print_json, print_note, printable

#: What the command needs.
GIVE = "Give one MESSAGE, or --file, or JSON lines on stdin."

#: How lines are read. Some editors begin a file with a byte order mark. A byte that is not UTF-8 is
#: a fault of its line.
ENCODING, ERRORS = "utf-8-sig", "surrogateescape"

#: Most faults that are shown one by one. Of more, only the number is shown.
MOST_SHOWN = 20


@dataclass(frozen=True)
class Line:
    """A message that may be sent."""

    number: int
    id: str
    queue: str
    body: str


class Unfit(Exception):
    """A worker would refuse the line. The text says why, without the line's values."""


@click.command("send", epilog="Example: celery -A app sqs send --file registrations.jsonl")
@click.argument("message", required=False)
@click.option(
    "--file",
    "lines",
    type=click.File(encoding=ENCODING, errors=ERRORS),
    help="File of JSON lines; - is stdin.",
)
@click.option("--queue", help="Queue to send to. Default: the queue of the task.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and message.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    message: str | None,
    lines: IO[str] | None,
    queue: str | None,
    as_json: bool,
) -> None:
    """Send plain JSON messages.

    Give one MESSAGE, or one message per line in a file or on stdin:

    \b
    {"id": "7f0c", "action": "registerUser", "data": {"stockId": "s1", …}}

    Checks all messages first, as a worker would, and sends none if one is invalid or has an
    unknown field. A message without an id gets one. Prints the id of each message that SQS
    accepted.

    Exits with status 1 if a message was not sent. stderr names its line and the reason.
    """
    celery_app = ctx.obj.app
    options = options_of(celery_app)
    celery_app.loader.import_default_modules()
    fit, unfit = checked(_given(message, lines), Checker(celery_app, options, queue))
    if unfit:
        _print_faults(unfit)
        raise click.ClickException(f"Nothing was sent: invalid lines: {len(unfit)}.")
    if not fit:
        raise click.UsageError("There is no message: the input is empty. " + GIVE)
    with deferred() as is_interrupted:
        sent, failed = send(driver_of(options), options, fit, is_interrupted)
    for line in sent:
        if as_json:
            print_json({"line": line.number, "id": line.id, "queue": line.queue})
        else:
            click.echo(printable(line.id))
    _print_faults(failed)
    print_note(f"{len(sent)} sent, {len(fit) - len(sent)} not sent.")
    ctx.exit(0 if len(sent) == len(fit) else 1)


class Checker:
    """Checks a line as a worker would, and turns it into a message."""

    def __init__(self, celery_app: Any, options: Options, queue: str | None) -> None:
        """Raises ClickException if `queue` is not configured."""
        if queue is not None and queue not in options.queues:
            known = ", ".join(options.queues)
            raise click.BadParameter(
                f"no queue {queue!r} is configured; the configured queues are: {known}"
            )
        self._app = celery_app
        self._options = options
        self._queue = queue

    def __call__(self, number: int, text: str) -> Line:
        """The message of a line. Raises Unfit."""
        text, id_ = _with_id(text)
        try:
            payload = decode(_as_delivery(text), self._options.decode_json)
        except Undecodable as exc:
            raise Unfit(exc.reason) from exc
        if payload["headers"]["delivery"].source is not Source.JSON:
            raise Unfit("this is a message of Celery or SNS, not a plain JSON message")
        if faults := unknown_fields(PlainJson, json.loads(text)):
            raise Unfit("; ".join(faults))
        task = payload["headers"]["task"]
        self._check_arguments(task, payload["body"][1])
        if (bytes_ := size(text, {})) > self._options.max_message_bytes:
            most = self._options.max_message_bytes
            raise Unfit(f"{bytes_} bytes; the queue accepts at most {most}")
        return Line(number, id_, self._queue or self._route(task), text)

    def _check_arguments(self, name: str, kwargs: dict[str, Any]) -> None:
        task = self._app.tasks.get(name)
        if task is None:
            raise Unfit(f"there is no task {name!r}")
        if (model := getattr(task, "model", None)) is None:
            raise Unfit(f"task {name!r} has no message model, so plain JSON cannot call it")
        try:
            read_strictly(model, fields_of(model, (), kwargs))
        except ValidationError as exc:
            raise Unfit(field_faults(exc, model)) from None
        except TypeError as exc:
            raise Unfit(str(exc)) from None

    def _route(self, task: str) -> str:
        try:
            return str(self._app.amqp.router.route({}, task)["queue"].name)
        except QueueNotFound as exc:
            raise Unfit(str(exc)) from exc


def checked(
    lines: Iterable[tuple[int, str]], check: Callable[[int, str], Line]
) -> tuple[list[Line], list[tuple[int, str]]]:
    """The messages of the valid lines, and the number and reason of each invalid line."""
    fit: list[Line] = []
    unfit: list[tuple[int, str]] = []
    for number, text in lines:
        try:
            fit.append(check(number, text))
        except Unfit as exc:
            unfit.append((number, str(exc)))
    return fit, unfit


def send(
    driver: Driver,
    options: Options,
    lines: list[Line],
    is_interrupted: Callable[[], bool] = lambda: False,
) -> tuple[list[Line], list[tuple[int, str]]]:
    """Send the messages, ten per call. Return those that SQS accepted, and the line number and
    reason of each other one."""
    published = Published()
    batch = Batch(published)
    given = []
    for batch.place, line in enumerate(lines):
        if is_interrupted():
            break
        queue = Queue(options.queue(line.queue).url, driver)
        batch.add(queue, Outgoing(line.body), options.max_message_bytes)
        given.append(line)
    batch.flush()
    sent = [line for place, line in enumerate(given) if place not in published.failed]
    return sent, [(given[place].number, why) for place, why in sorted(published.failed.items())]


def _given(message: str | None, lines: IO[str] | None) -> Iterator[tuple[int, str]]:
    if (message is None) == (lines is None) and (message or sys.stdin.isatty()):
        raise click.UsageError(GIVE)
    source: Iterable[str] = [message] if message is not None else lines or _stdin()
    return ((n, text.strip()) for n, text in enumerate(source, 1) if text.strip())


def _stdin() -> IO[str]:
    return click.open_file("-", encoding=ENCODING, errors=ERRORS)


def _with_id(text: str) -> tuple[str, str]:
    """The line and its id. A line without an id gets a new one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit("the line is not UTF-8") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unfit("the line is not JSON") from exc
    if not isinstance(content, dict):
        raise Unfit("the line is not a JSON object")
    if content.get("id") is None:
        content = {**content, "id": str(uuid.uuid4())}
        text = json.dumps(content, ensure_ascii=False)
    return text, str(content["id"])


def _as_delivery(body: str) -> Delivery:
    return Delivery("", "", "", "", body, {}, 1, datetime.now(UTC), 0.0)


def _print_faults(faults: list[tuple[int, str]]) -> None:
    for number, why in faults[:MOST_SHOWN]:
        print_note(f"line {number}: {why}")
    if len(faults) > MOST_SHOWN:
        print_note(f"… and {len(faults) - MOST_SHOWN} more lines.")
