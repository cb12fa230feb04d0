"""Results as tables of Markdown."""

from collections.abc import Callable, Iterable, Sequence

from bench.candidates import BARE, BARE_BULK, OURS, STOCK_BEST
from bench.goals import goals
from bench.results import Load, Results, Round, Throughput

TASKS = {
    "noop": "no work",
    "register": "one MongoDB upsert",
    "wait": "50 ms of waiting",
}
MEGABYTE = 1024 * 1024


def throughput(results: Results) -> str:
    """One table for each kind of work and delay."""
    kinds = dict.fromkeys((row.task, row.added_ms) for row in results.throughput)
    return "\n\n".join(
        f"**{TASKS.get(task, task)}, +{added:g} ms a call**\n\n{_kind(results, task, added)}"
        for task, added in sorted(
            kinds, key=lambda kind: (kind[0] != "register", kind[0], -kind[1])
        )
    )


def _kind(results: Results, task: str, added_ms: float) -> str:
    rows = [r for r in results.throughput if (r.task, r.added_ms) == (task, added_ms)]
    head = (
        "consumer", "messages/s (min-max)", "times stock", "of the bare loop", "of its bulk writes",
        "SQS calls/message", "receive", "delete", "CPU s/1000", "MongoDB trips/message",
        "memory MB",
    )  # fmt: skip
    return table(head, [_cells(results, row) for row in rows])


def _cells(results: Results, row: Throughput) -> list[str]:
    return [
        _name(row),
        _rate(row),
        _number(results.ratio(row, STOCK_BEST.name), "{:.1f}"),
        _number(results.ratio(row, BARE.name), "{:.2f}"),
        _number(results.ratio(row, BARE_BULK.name), "{:.2f}"),
        *(_calls(row, word) for word in ("", "Receive", "Delete")),
        _middle(row, lambda each: each.cpu_a_thousand, "{:.2f}"),
        _middle(row, lambda each: each.trips_a_message, "{:.2f}"),
        _middle(row, lambda each: each.memory and each.memory / MEGABYTE, "{:.0f}"),
    ]


def headline(results: Results) -> str:
    """The README's sentence: one upsert a message, ours and stock Celery's."""
    ours, stock = (results.find(each.name, "register", 10) for each in (OURS, STOCK_BEST))
    if not (ours and stock):
        return "Not measured."
    calls = _middle(ours, Round.calls_a_message, "{:.2f}")
    return (
        f"One worker stores {ours.rate:.0f} messages/s (one MongoDB upsert each, 10 ms added to "
        f"each SQS call) with {calls} SQS calls per message; stock Celery with its best settings "
        f"stores {stock.rate:.0f}."
    )


def depths(results: Results) -> str:
    """This project at backlogs of different depths."""
    rows = [[f"{row.backlog:,}", _rate(row)] for row in results.depths]
    return table(("messages in the queue", "messages/s (min-max)"), rows)


def queues(results: Results) -> str:
    """This project with one busy queue among some that are empty."""
    rows = [
        [
            f"{row.queues}",
            _rate(row),
            _calls(row, ""),
            _middle(row, lambda each: each.cpu_a_thousand, "{:.2f}"),
            _middle(row, lambda each: each.memory and each.memory / MEGABYTE, "{:.0f}"),
        ]
        for row in results.queues
    ]
    head = ("queues", "messages/s (min-max)", "SQS calls/message", "CPU s/1000", "memory MB")
    return table(head, rows)


def fleets(results: Results) -> str:
    """Several workers of this project on one queue, and whose the cores were meanwhile."""
    rows = [
        [
            f"{row.workers}",
            _rate(row),
            _middle(row, lambda each: each.a_cpu_second, "**{:.0f}**"),
            _middle(row, lambda each: each.cpu_a_thousand, "{:.2f}"),
            *(_cores(row, part) for part in PARTS.values()),
            _calls(row, ""),
            _middle(row, lambda each: each.memory and each.memory / MEGABYTE, "{:.0f}"),
        ]
        for row in results.fleets
    ]
    head = (
        "workers", "messages/s (min-max)", "messages a CPU second", "CPU s/1000",
        *(f"cores: {name}" for name in PARTS), "SQS calls/message", "memory MB",
    )  # fmt: skip
    return table(head, rows)


#: Who had the cores, by what is told of them.
PARTS: dict[str, Callable[[Round], float | None]] = {
    "workers": lambda each: each.worker_cpu,
    "SQS server": lambda each: each.server_cpu,
    "MongoDB": lambda each: each.database_cpu,
    "proxy": lambda each: each.proxy_cpu,
    "all else": lambda each: each.rest_cpu,
}


def _cores(row: Throughput, part: Callable[[Round], float | None]) -> str:
    def cores(each: Round) -> float | None:
        used = part(each)
        return None if used is None else used / each.seconds

    return _middle(row, cores, "{:.2f}")


def loads(results: Results) -> str:
    """One worker at several rates."""
    rows = [
        [
            f"{each.asked:g}", f"{each.rate:.0f}", f"{each.calls_a_second:.2f}",
            _each(each, sum(each.calls.values()), "{:.3f}"),
            f"{each.commands_a_second:.1f}",
            _each(each, sum(each.commands.values()), "{:.2f}"),
            _number(each.worker_cpu and each.worker_cpu / each.seconds, "{:.3f}"),
            _number(each.database_cpu and each.database_cpu / each.seconds, "{:.3f}"),
            _each(each, each.log_bytes, "{:.0f}"),
            _number(each.p50, "{:.0f}"), _number(each.p99, "{:.0f}"),
        ]
        for each in results.loads
    ]  # fmt: skip
    head = (
        "messages/s sent", "done", "SQS calls/s", "SQS calls/message", "MongoDB commands/s",
        "commands/message", "cores: worker", "cores: MongoDB", "log bytes/message", "p50 ms",
        "p99 ms",
    )  # fmt: skip
    return table(head, rows)


def _each(load: Load, figure: float, how: str) -> str:
    return _number(figure / load.deleted if load.deleted else None, how)


def latency(results: Results) -> str:
    rows = [
        [
            each.config, f"{each.load:.0%}", f"{each.rate:.0f}", _number(each.p50, "{:.1f}"),
            _number(each.p99, "{:.1f}"), f"{each.stored} of {each.sent}",
        ]
        for each in results.latency
    ]  # fmt: skip
    head = ("consumer", "load", "messages/s", "p50 ms", "p99 ms", "stored")
    return table(head, rows)


def quiet(results: Results) -> str:
    rows = [
        [
            each.config, each.state, _number(each.cores and each.cores * 100, "{:.1f}%"),
            f"{each.calls_an_hour:.0f}", _number(each.memory and each.memory / MEGABYTE, "{:.0f}"),
        ]
        for each in results.quiet
    ]  # fmt: skip
    return table(("consumer", "state", "of a core", "SQS calls/hour", "memory MB"), rows)


def recovery(results: Results) -> str:
    rows = [
        [each.config, f"{each.visibility_timeout} s", str(each.left), f"{each.seconds:.1f} s"]
        for each in results.recovery
    ]
    head = ("consumer", "visibility timeout", "messages left", "all stored after")
    return table(head, rows)


def publishing(results: Results) -> str:
    rows = [
        [each.way, f"{each.messages:,}", f"{each.messages / each.seconds:.0f}",
         f"{each.calls_a_message:.2f}", _number(each.cpu_us, "{:.0f}")]
        for each in results.publishing
    ]  # fmt: skip
    head = ("way", "messages", "messages/s at +10 ms a call", "SQS calls/message", "CPU µs/message")
    return table(head, rows)


def events(results: Results) -> str:
    rows = [
        [
            each.config, f"{each.sent:,}", f"{each.settled:,}",
            "-" if each.heard is None else f"{each.heard:,}", _number(each.lag_p99, "{:.0f}"),
            _number(each.cores, "{:.2f}"), f"{each.commands_a_second:.0f}",
        ]
        for each in results.events
    ]  # fmt: skip
    head = ("consumer", "tasks sent", "done", "events heard", "lag p99 ms", "cores",
            "MongoDB commands/s")  # fmt: skip
    return table(head, rows)


def api(results: Results) -> str:
    """The HTTP API and the endpoints beside it."""
    rows = [
        [
            each.way + (f", {each.processes} processes" if each.processes > 1 else ""),
            f"{each.clients}",
            "as fast as they can" if each.rate is None else f"{each.rate:g}/s",
            f"**{each.per_second:.0f}**", f"{each.p50:.0f}", f"{each.p99:.0f}",
            f"{each.calls_a_request:.2f}", _number(each.cpu_ms, "{:.2f}"), f"{each.refused}",
        ]
        for each in results.requests
    ]  # fmt: skip
    head = ("way", "clients", "they ask", "accepted/s", "p50 ms", "p99 ms", "SQS calls/request",
            "CPU ms/request", "refused")  # fmt: skip
    told = [table(head, rows)]
    if lone := results.lone:
        told.append(
            f"One request after the other takes {lone.request_ms:.1f} ms, and one call of boto3's "
            f"`send_message` {lone.call_ms:.1f} ms (medians)."
        )
    if batch := results.batch:
        told.append(
            f"A batch of {batch.items:,}: {batch.accepted:,} accepted within {batch.seconds:.1f} "
            f"s by {batch.calls:,} calls, up to {batch.most_open} at the same time."
        )
    return "\n\n".join(told)


def figures(results: Results) -> str:
    """What was wanted beside what was measured."""
    rows = [
        [goal.what, goal.wanted, goal.measured, "yes" if goal.is_reached else "**no**"]
        for goal in goals(results)
    ]
    return table(("figure", "wanted", "measured", "reached"), rows)


def _name(row: Throughput) -> str:
    return row.config if row.workers == 1 else f"{row.config}, {row.workers} workers"


def _calls(row: Throughput, word: str) -> str:
    return _middle(row, lambda each: each.calls_a_message(word), "{:.3f}")


def _rate(row: Throughput) -> str:
    low, high = row.spread
    return f"**{row.rate:.0f}** ({low:.0f}-{high:.0f})"


def _middle(row: Throughput, figure: Callable[[Round], float | None], how: str) -> str:
    return _number(row.median(figure), how)


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else how.format(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
    return "\n".join(lines) if len(lines) > 2 else "Not measured."


def _line(fields: Sequence[str]) -> str:
    return f"| {' | '.join(fields)} |"
