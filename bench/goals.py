"""The figures this project is held to, and whether a run reached them."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.api import API, DELAY, SEND_MESSAGE
from bench.candidates import (
    BARE,
    BARE_BULK,
    OURS,
    OURS_8,
    OURS_BY_DOOR,
    OURS_JSON,
    SQS_CONSUMER,
    STOCK_BEST,
)
from bench.lab import VISIBILITY_TIMEOUT
from bench.publishing import WAYS
from bench.results import Results, Round, Throughput

#: Commands of MongoDB that store a user or look for one. The inserts of users, one for each job of
#: a task with `many`, cannot be told from those of events, which are no part of it.
STORING = ("findAndModify", "update", "find")

MEGABYTE = 1024 * 1024


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
        *_bulk(results),
        *_doors(results),
        *_ordinary(results),
        *_costs(results),
        *_delays(results),
        *_sending(results),
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


def _bulk(results: Results) -> Iterator[Goal]:
    """Beside a loop that promises nothing, and writes ten users at a time, too."""
    for added, wanted in ((10, 1.0), (0, 0.8)):
        ours, bulk = (results.find(each.name, "register", added) for each in (OURS, BARE_BULK))
        if not (ours and bulk):
            continue
        what = f"one upsert, +{added} ms a call: "
        yield from _at_least(
            f"{what}times the bare loop with bulk writes", wanted, ours.rate / bulk.rate
        )
        spent, least = (row.median(lambda each: each.cpu_a_thousand) for row in (ours, bulk))
        if spent and least:
            yield from _at_most(f"{what}CPU, times that of the same", 1.0, spent / least)


def _doors(results: Results) -> Iterator[Goal]:
    """What each door costs beside plain JSON."""
    plain = results.find(OURS_JSON.name, "register", 10)
    for candidate in OURS_BY_DOOR:
        row = results.find(candidate.name, "register", 10)
        if plain and row and candidate is not OURS_JSON:
            what = f"one upsert, +10 ms a call: {candidate.door}, times plain JSON"
            yield from _at_least(what, 0.9, row.rate / plain.rate)


def _ordinary(results: Results) -> Iterator[Goal]:
    """Tasks without `many`."""
    for added, wanted in ((10, 0.6), (0, 0.5)):
        if ours := results.find(OURS.name, "noop", added):
            what = f"no work, +{added} ms a call: times "
            yield from _at_least(f"{what}the bare loop", wanted, results.ratio(ours, BARE.name))
            if not added:
                to_other = results.ratio(ours, SQS_CONSUMER.name)
                yield from _at_least(f"{what}sqs-consumer", 0.8, to_other)
    if waiting := results.find(OURS_8.name, "wait", 10) or results.find(OURS_8.name, "wait", 0):
        what = f"50 ms of waiting on 8 slots, +{waiting.added_ms:g} ms: "
        yield from _at_least(f"{what}of 160 possible", 156, waiting.rate, "/s")
        calls = waiting.median(Round.calls_a_message)
        yield from _at_most(f"{what}SQS calls a message", 0.21, calls)


def _costs(results: Results) -> Iterator[Goal]:
    if row := results.find(OURS.name, "register", 10):
        last = _middle(row)
        calls = row.rounds[last].calls_a_message()
        yield from _at_most("SQS calls a message, received to deleted", 0.22, calls)
        stored = sum(row.rounds[last].commands.get(name, 0) for name in STORING)
        trips = stored / (row.rounds[last].stored or row.rounds[last].deleted)
        # The two are not counted at the same instant.
        yield from _at_most("MongoDB round trips a registration", 1.01, trips)
    if row := results.find(OURS_8.name, "register", 10):
        memory = row.median(lambda each: each.memory and each.memory / MEGABYTE)
        yield from _at_most("a worker of 8 processes: memory", 200, memory, " MB")


def _delays(results: Results) -> Iterator[Goal]:
    """From sent to stored, at the rates that are the same in each run."""
    for rate, half, most in ((50, 2, 6), (130, 3, 6)):
        for each in results.latency:
            if (each.config, each.rate) == (OURS.name, rate):
                what = f"from sent to stored, {rate}/s, +{each.added_ms:g} ms a call: "
                yield from _at_most(f"{what}p50", half, each.p50, " ms")
                yield from _at_most(f"{what}p99", most, each.p99, " ms")


def _sending(results: Results) -> Iterator[Goal]:
    for sent in results.publishing:
        if sent.way == WAYS["many"]:
            yield from _at_most("SQS calls a message sent in bulk", 0.1, sent.calls_a_message)
            rate = sent.messages / sent.seconds
            yield from _at_least("publish_many, +10 ms a call", 3000, rate, "/s")
    if first := results.first_use:
        yield from _at_most("a producer: import of app.tasks", 0.5, first.imported, " s")
        yield from _at_most("a producer: first .delay", 0.1, first.first, " s")
        yield from _at_most("a producer: .delay, CPU", 500, first.later_us, " µs")


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
