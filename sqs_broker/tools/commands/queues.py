"""`sqs queues`: how many messages each queue has, and the age of the oldest."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.sqs.boto import ask, quick_client
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import DELAYED, NOT_VISIBLE, VISIBLE, Queue
from sqs_broker.sqs.requests import name_of
from sqs_broker.tools.broker import driver_of, is_aws, options_of, refusal
from sqs_broker.tools.commands.output import print_json, print_note, print_table, printable
from sqs_broker.tools.pauses import pauses_of

#: Seconds between two counts of `--watch`.
EVERY = 2.0

#: Seconds for which the ages of the oldest messages are valid: CloudWatch has one value per minute.
AGES_VALID = 60.0

#: How old a value of CloudWatch may be. Its newest one may be a few minutes old.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-monitoring-using-cloudwatch.html
AGES_REACH_BACK = timedelta(minutes=10)

#: Queues in one call to CloudWatch.
MOST_QUERIES = 500

Ages = dict[str, int]


@dataclass(frozen=True)
class Row:
    """One queue, as SQS counts it: approximately, until nothing has changed for a minute."""

    queue: str
    visible: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    oldest: int | None = None
    """Seconds since the oldest message was sent; None if that is not known."""
    dead_letters_of: str | None = None
    """The queue whose dead-letter queue this is."""
    fault: str | None = None
    """Why SQS did not count."""
    paused: str | None = None
    """Why no worker receives from it, and until when."""


@click.command("queues", epilog="Example: celery -A app sqs queues --watch")
@click.option("--watch", is_flag=True, help="Repeat every two seconds, until Ctrl+C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and queue.")
@click.pass_context
def command(ctx: click.Context, watch: bool, as_json: bool) -> None:
    """Show how many messages each queue has.

    Each queue is followed by its dead-letter queue. VISIBLE messages wait for a worker, a worker
    has those IN FLIGHT, and DELAYED ones are not due yet. OLDEST is the age of the oldest message.
    It is from CloudWatch, because SQS does not know it; without CloudWatch it is `-`. Lines after
    the table say which queues are paused.

    Exits with status 1 if SQS did not answer for every queue.
    """
    options = options_of(ctx.obj.app)
    driver, ages = driver_of(options), remembered(lambda: ages_of(options))
    with suppress(KeyboardInterrupt):
        while True:
            paused = _pauses(options)
            rows = [
                replace(row, oldest=ages().get(row.queue), paused=paused.get(row.queue))
                for row in count(driver, options)
            ]
            if watch and not as_json:
                click.clear()
            _show(rows, as_json)
            if not watch:
                ctx.exit(1 if any(row.fault for row in rows) else 0)
            time.sleep(EVERY)


def count(driver: Driver, options: Options) -> Iterator[Row]:
    """Count each configured queue, and after it its dead-letter queue."""
    seen = set()
    for name, address in options.queues.items():
        yield _row(Queue(address.url, driver), Row(name))
        dead = address.dead_letter_url
        if dead is not None and dead not in seen:
            seen.add(dead)
            yield _row(Queue(dead, driver), Row(name_of(dead), dead_letters_of=name))


def _row(queue: Queue, row: Row) -> Row:
    try:
        counted = queue.attributes(VISIBLE, NOT_VISIBLE, DELAYED).values
    except SqsError as exc:
        return replace(row, fault=refusal(exc, "GetQueueAttributes", queue.url))
    return replace(
        row,
        visible=int(counted[VISIBLE]),
        in_flight=int(counted[NOT_VISIBLE]),
        delayed=int(counted[DELAYED]),
    )


def _show(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        for row in rows:
            print_json(asdict(row))
    else:
        print_table(
            ("QUEUE", "VISIBLE", "IN FLIGHT", "DELAYED", "OLDEST"),
            [(r.queue, r.visible, r.in_flight, r.delayed, duration(r.oldest)) for r in rows],
        )
        for row in rows:
            if row.paused:
                click.echo(printable(f"{row.queue} is paused: {row.paused}"))
    for row in rows:
        if row.fault:
            print_note(row.fault)


def _pauses(options: Options) -> Mapping[str, str]:
    try:
        return pauses_of(options)
    except click.ClickException as exc:
        print_note(f"It is not known which queues are paused: {exc.message}")
        return {}


def duration(seconds: int | None) -> str | None:
    """Seconds in a readable form: `42s`, `7m 3s`, `5h 20m`, `3d 4h`."""
    if seconds is None:
        return None
    for size, unit, small, of_it in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // small}{of_it}"
    return f"{seconds // 60}m {seconds % 60}s" if seconds >= 60 else f"{seconds}s"


# The oldest message ------------------------------------------------------------------------------


def ages_of(options: Options) -> Ages:
    """The age of the oldest message of each queue, if there is a CloudWatch that knows it.

    If CloudWatch fails, prints the reason on stderr.
    """
    if not is_aws(options.endpoint_url):
        return {}
    urls = {name: address.url for name, address in options.queues.items()}
    urls |= {name_of(a.dead_letter_url): a.dead_letter_url for a in options.queues.values()
             if a.dead_letter_url}  # fmt: skip
    cloudwatch = quick_client(options, "cloudwatch")
    try:
        return ages_from(cloudwatch, urls, datetime.now(UTC))
    except SqsError as exc:
        print_note(f"OLDEST is not known: CloudWatch: {exc.code} (cloudwatch:GetMetricData).")
        return {}


def ages_from(cloudwatch: Any, urls: dict[str, str], now: datetime) -> Ages:
    """Ask CloudWatch for the newest ApproximateAgeOfOldestMessage of each queue, in one call.

    Raises SqsError.
    """
    names = list(urls)[:MOST_QUERIES]
    answer = ask(
        cloudwatch.get_metric_data,
        StartTime=now - AGES_REACH_BACK,
        EndTime=now,
        ScanBy="TimestampDescending",
        MetricDataQueries=[_query(n, name_of(urls[name])) for n, name in enumerate(names)],
    )
    found = ((int(result["Id"][1:]), result["Values"]) for result in answer["MetricDataResults"])
    return {names[number]: int(values[0]) for number, values in found if values}


def _query(number: int, queue: str) -> dict[str, Any]:
    metric = {
        "Namespace": "AWS/SQS",
        "MetricName": "ApproximateAgeOfOldestMessage",
        "Dimensions": [{"Name": "QueueName", "Value": queue}],
    }
    return {"Id": f"q{number}", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Maximum"}}


def remembered(
    ask: Callable[[], Ages], clock: Callable[[], float] = time.monotonic
) -> Callable[[], Ages]:
    """Remember the answer of `ask` for a minute."""
    asked_at, ages = float("-inf"), Ages()

    def answer() -> Ages:
        nonlocal asked_at, ages
        if clock() - asked_at >= AGES_VALID:
            asked_at, ages = clock(), ask()
        return ages

    return answer
