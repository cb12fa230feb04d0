"""`sqs send`: plain JSON messages, one or many, checked whole before the first is sent."""

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

from app.messages import field_faults, fields_of
from sqs_broker.errors import Undecodable
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import size
from sqs_broker.rules.decoding import decode
from sqs_broker.rules.lease import Delivery
from sqs_broker.rules.provenance import Source
from sqs_broker.sqs.publisher import Batch, Published
from sqs_broker.sqs.queue import Driver, Queue
from sqs_broker.sqs.requests import Outgoing
from sqs_broker.tools.commands.broker import driver_of, options_of
from sqs_broker.tools.commands.interruption import deferred
from sqs_broker.tools.commands.output import print_json, printable, say

#: Faults that are told one by one; of more, the number is.
MOST_TOLD = 20


@dataclass(frozen=True)
class Line:
    """A message that may be sent."""

    number: int
    id: str
    queue: str
    body: str


class Unfit(Exception):
    """The line is no message that a worker would run; the text says why, without its values."""


@click.command("send", epilog="Example: celery -A app sqs send --file registrations.jsonl")
@click.argument("message", required=False)
@click.option("--file", "lines", type=click.File(encoding="utf-8"), help="JSON lines; - is stdin.")
@click.option("--queue", help="Queue to send to; without it, the one that the task has.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a message and line.")
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

    One MESSAGE, or one a line of a file or of stdin:

    \b
    {"id": "7f0c", "action": "registerUser", "data": {"stockId": "s1", …}}

    All are checked first, as the worker would check them, and none is sent where one is wrong. A
    message without an id is given one. Prints the id of each message that SQS took.

    Exit status 1 where a message was not sent; stderr says which line, and why.
    """
    celery_app = ctx.obj.app
    options = options_of(celery_app)
    celery_app.loader.import_default_modules()
    fit, unfit = checked(_given(message, lines), Checker(celery_app, options, queue))
    if unfit:
        _say_faults(unfit)
        raise click.ClickException(f"Nothing was sent: {len(unfit)} of the lines are wrong.")
    with deferred() as is_interrupted:
        sent, failed = send(driver_of(options), options, fit, is_interrupted)
    for line in sent:
        if as_json:
            print_json({"line": line.number, "id": line.id, "queue": line.queue})
        else:
            click.echo(printable(line.id))
    _say_faults(failed)
    say(f"{len(sent)} sent, {len(fit) - len(sent)} not.")
    ctx.exit(0 if len(sent) == len(fit) else 1)


class Checker:
    """Makes a line a message that may be sent."""

    def __init__(self, celery_app: Any, options: Options, queue: str | None) -> None:
        """Raises ClickException for a queue that is not configured."""
        if queue is not None and queue not in options.queues:
            known = ", ".join(options.queues)
            raise click.BadParameter(f"no queue {queue!r} is configured; there is: {known}")
        self._app = celery_app
        self._options = options
        self._queue = queue

    def __call__(self, number: int, text: str) -> Line:
        """Raises Unfit."""
        text, id_ = _with_id(text)
        try:
            payload = decode(_as_delivery(text), self._options.decode_json)
        except Undecodable as exc:
            raise Unfit(exc.reason) from exc
        if payload["headers"]["delivery"].source is not Source.JSON:
            raise Unfit("this is no plain JSON message, but Celery's or SNS's own")
        task = payload["headers"]["task"]
        self._check_arguments(task, payload["body"][1])
        if (bytes_ := size(text, {})) > self._options.max_message_bytes:
            raise Unfit(f"{bytes_} bytes; the queue takes {self._options.max_message_bytes}")
        return Line(number, id_, self._queue or self._route(task), text)

    def _check_arguments(self, name: str, kwargs: dict[str, Any]) -> None:
        task = self._app.tasks.get(name)
        if task is None:
            raise Unfit(f"there is no task {name!r}")
        if (model := getattr(task, "model", None)) is None:
            raise Unfit(f"task {name!r} has no message model, so plain JSON cannot reach it")
        try:
            model.model_validate(fields_of(model, (), kwargs))
        except ValidationError as exc:
            raise Unfit(field_faults(exc)) from None
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
    """The messages that may be sent, and why each other line may not."""
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
    """Send ten a call; those that SQS took, and why it did not take each other one."""
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
        raise click.UsageError("Give one MESSAGE, or --file, or JSON lines on stdin.")
    source = [message] if message is not None else lines or sys.stdin
    return ((n, text.strip()) for n, text in enumerate(source, 1) if text.strip())


def _with_id(text: str) -> tuple[str, str]:
    """The line, unchanged where it has an id; else with a new one."""
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


def _say_faults(faults: list[tuple[int, str]]) -> None:
    for number, why in faults[:MOST_TOLD]:
        say(f"line {number}: {why}")
    if len(faults) > MOST_TOLD:
        say(f"… and {len(faults) - MOST_TOLD} more lines.")
