"""The figures this project is held to, and whether a run reached them."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.api import API, DELAY, SEND_MESSAGE
from bench.candidates import BARE, OURS, OURS_8, SQS_CONSUMER, STOCK_BEST
from bench.lab import VISIBILITY_TIMEOUT
from bench.publishing import WAYS
from bench.results import Results, Throughput

#: Commands of MongoDB that store a user or look for one. The inserts of users, one for each job of
#: a task with `many`, cannot be told from those of events, which are no part of it.
STORING = ("findAndModify", "update", "find")


@dataclass(frozen=True)
class Goal:
    """A figure that is wanted, beside the one that was measured."""

    what: str
    wanted: str
    measured: str
    is_reached: bool


def goals(results: Results) -> list[Goal]:
    """Each figure that this run measured."""
    return [
        *_rates(results),
        *_costs(results),
        *_quiet(results),
        *_recovered(results),
        *_crowds(results),
        *_single_requests(results),
    ]


def _at_least(what: str, wanted: float, measured: float | None, unit: str = "") -> Iterator[Goal]:
    if measured is not None:
        told = f"at least {wanted:g}{unit}"
        yield Goal(what, told, f"{measured:.3g}{unit}", measured >= wanted)


def _at_most(what: str, wanted: float, measured: float | None, unit: str = "") -> Iterator[Goal]:
    if measured is not None:
        told = f"at most {wanted:g}{unit}"
        yield Goal(what, told, f"{measured:.3g}{unit}", measured <= wanted)


def _rates(results: Results) -> Iterator[Goal]:
    there = "one upsert, +10 ms a call: times "
    far = results.find(OURS.name, "register", 10)
    near = results.find(OURS.name, "register", 0)
    waiting = results.find(OURS_8.name, "wait", 10) or results.find(OURS_8.name, "wait", 0)
    if far:
        to_stock = results.ratio(far, STOCK_BEST.name)
        yield from _at_least(f"{there}stock Celery at its best", 10, to_stock)
        yield from _at_least(f"{there}stock Celery at its best, then", 16, to_stock)
        yield from _at_least(f"{there}sqs-consumer", 3, results.ratio(far, SQS_CONSUMER.name))
        yield from _at_least(f"{there}the bare loop", 0.75, results.ratio(far, BARE.name))
    if near:
        here = "one upsert, +0 ms: times "
        to_stock = results.ratio(near, STOCK_BEST.name)
        yield from _at_least(f"{here}stock Celery at its best", 2.5, to_stock)
        yield from _at_least(f"{here}sqs-consumer", 1, results.ratio(near, SQS_CONSUMER.name))
    if waiting:
        what = f"50 ms of waiting on 8 slots, +{waiting.added_ms:g} ms: of 160 possible"
        yield from _at_least(what, 155, waiting.rate, "/s")


def _costs(results: Results) -> Iterator[Goal]:
    if row := results.find(OURS.name, "register", 10):
        last = _middle(row)
        calls = row.rounds[last].calls_a_message()
        yield from _at_most("SQS calls a message, received to deleted", 0.22, calls)
        stored = sum(row.rounds[last].commands.get(name, 0) for name in STORING)
        trips = stored / (row.rounds[last].stored or row.rounds[last].deleted)
        # The two are not counted at the same instant.
        yield from _at_most("MongoDB round trips a registration", 1.01, trips)
    for sent in results.publishing:
        if sent.way == WAYS["many"]:
            yield from _at_most("SQS calls a message sent in bulk", 0.1, sent.calls_a_message)


def _quiet(results: Results) -> Iterator[Goal]:
    for each in results.quiet:
        if (each.config, each.state) == (OURS.name, "idle"):
            share = None if each.cores is None else each.cores * 100
            yield from _at_most("idle: of a core", 2, share, "%")
            yield from _at_most("idle: SQS calls an hour and queue", 190, each.calls_an_hour)


def _recovered(results: Results) -> Iterator[Goal]:
    what = f"kill -9, visibility timeout {VISIBILITY_TIMEOUT} s: all stored within"
    for each in results.recovery:
        if each.config == OURS.name:
            yield from _at_most(what, 75, each.seconds, " s")


def _crowds(results: Results) -> Iterator[Goal]:
    """What the API takes where each client asks again at once, and how long it takes where they
    do not."""
    for each in results.requests:
        if each.way == API and each.rate is not None:
            told = f"API, {each.clients} clients, {each.rate:g} requests/s: p99"
            yield from _at_most(told, 4 * each.added_ms, each.p99, " ms")
    if not (ours := results.full(API)):
        return
    what = f"API, {ours.clients} clients, +{ours.added_ms:g} ms a call: "
    yield from _at_most(f"{what}SQS calls a request", 0.15, ours.calls_a_request)
    yield from _at_most(f"{what}CPU a request", 0.7, ours.cpu_ms, " ms")
    yield from _at_most(f"{what}p99", 4 * ours.added_ms, ours.p99, " ms")
    for way, times in ((SEND_MESSAGE, 5), (DELAY, 3)):
        if other := results.full(way):
            ratio = ours.per_second / other.per_second
            yield from _at_least(f"{what}requests/s, times {way}", times, ratio)


def _single_requests(results: Results) -> Iterator[Goal]:
    if lone := results.lone:
        more = lone.request_ms - lone.call_ms
        yield from _at_most("API, a lone request: more than one SQS call takes", 2, more, " ms")
    if batch := results.batch:
        what = f"API, a batch of {batch.items:,}: "
        most = batch.items // 10
        told = f"{batch.calls:,}"
        yield Goal(f"{what}SQS calls", f"at most {most:,}", told, batch.calls <= most)
        yield from _at_least(f"{what}SQS calls at the same time", 4, batch.most_open)


def _middle(row: Throughput) -> int:
    """The round whose rate is the median, the lower one of two."""
    order = sorted(range(len(row.rounds)), key=lambda number: row.rounds[number].rate)
    return order[(len(order) - 1) // 2]
