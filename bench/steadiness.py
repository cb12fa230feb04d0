"""Whether a worker that ran for long is as it was, and has an account of every message."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from sqs_broker.machine import files

MEGABYTE = 1024 * 1024
#: What may be added between the second quarter of a run and its last: the first one warms up.
MEMORY_SHARE, MEMORY_LEAST = 0.05, 8 * MEGABYTE
DESCRIPTORS = THREADS = 2
#: Seconds of the flow that may wait in the queue.
WAITING_SECONDS = 10


@dataclass(frozen=True)
class Sample:
    """One look at the worker and its messages."""

    at: float
    """Seconds from the start of the flow."""
    memory: int
    """Bytes of the worker and its pool."""
    descriptors: int
    threads: int
    sent: int
    settled: int
    """Messages that SQS was told to delete, and did."""
    stored: int
    """Users."""


@dataclass(frozen=True)
class Account:
    """All messages of a run: what was sent, and what became of it."""

    sent: int
    settled: int
    users_sent: int
    """Each once, however often it was sent."""
    users_stored: int
    bad_sent: int
    """Messages that no worker can run."""
    dead_letters: int


@dataclass
class Soak:
    """A whole run."""

    at: str
    machine: str
    server: str
    minutes: float
    rate: float
    """Messages a second."""
    samples: list[Sample] = field(default_factory=list)
    account: Account | None = None


_ADAPTER = TypeAdapter(Soak)


def load(path: Path) -> Soak:
    """Read what `save` wrote."""
    return _ADAPTER.validate_json(path.read_bytes())


def save(soak: Soak, path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, _ADAPTER.dump_json(soak, indent=1) + b"\n", files.PUBLIC)


def faults(soak: Soak) -> list[str]:
    """What grew or drifted, a line each; none of a steady run."""
    return [*_growth(soak.samples), *_lag(soak), *_drift(soak.account)]


def table(soak: Soak) -> str:
    """What was, and what is, in Markdown."""
    figures: dict[str, Callable[[Sample], float]] = {
        "memory of the worker and its pool, MB": _memory,
        "descriptors": lambda each: each.descriptors,
        "threads": lambda each: each.threads,
        "messages sent and not settled": lambda each: each.sent - each.settled,
    }
    lines = ["| | second quarter | last quarter |", "| --- | --- | --- |"]
    for name, figure in figures.items() if soak.samples else ():
        before, after = before_and_after(soak.samples, figure)
        lines.append(f"| {name} | {before:.0f} | {after:.0f} |")
    return "\n".join([*lines, "", _accounted(soak.account)])


def _accounted(account: Account | None) -> str:
    if account is None:
        return "The messages were not counted."
    return (
        f"{account.sent:,} messages sent, {account.settled:,} settled; {account.users_sent:,} "
        f"users sent, {account.users_stored:,} stored; {account.bad_sent:,} bad messages sent, "
        f"{account.dead_letters:,} dead-lettered."
    )


def before_and_after(
    samples: Sequence[Sample],
    figure: Callable[[Sample], float],
    of: Callable[[list[float]], float] = median,
) -> tuple[float, float]:
    """The medians, or something else, of the second quarter of a run and of its last."""
    size = max(len(samples) // 4, 1)
    return (
        of([figure(each) for each in samples[size : 2 * size] or samples]),
        of([figure(each) for each in samples[-size:]]),
    )


def _growth(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return ["nothing was sampled"]
    memory = before_and_after(samples, _memory)
    # The fewest: while messages wait, more threads run for a while. Those that are lost stay.
    descriptors = before_and_after(samples, lambda each: each.descriptors, min)
    threads = before_and_after(samples, lambda each: each.threads, min)
    found = []
    if memory[1] - memory[0] > max(memory[0] * MEMORY_SHARE, MEMORY_LEAST / MEGABYTE):
        found.append("memory grew from {:.0f} to {:.0f} MB".format(*memory))
    if descriptors[1] - descriptors[0] > DESCRIPTORS:
        found.append("descriptors grew from {:.0f} to {:.0f}".format(*descriptors))
    if threads[1] - threads[0] > THREADS:
        found.append("threads grew from {:.0f} to {:.0f}".format(*threads))
    return found


def _memory(sample: Sample) -> float:
    return sample.memory / MEGABYTE


def _lag(soak: Soak) -> list[str]:
    if not soak.samples:
        return []
    _, waiting = before_and_after(soak.samples, lambda each: each.sent - each.settled)
    if waiting > soak.rate * WAITING_SECONDS:
        return [f"the worker fell behind: {waiting:.0f} messages waited at the end of the flow"]
    return []


def _drift(account: Account | None) -> list[str]:
    if account is None:
        return ["the messages were not counted"]
    pairs = {
        "messages sent, settled": (account.sent, account.settled),
        "users sent, stored": (account.users_sent, account.users_stored),
        "bad messages sent, dead-lettered": (account.bad_sent, account.dead_letters),
    }
    return [f"{name}: {one}, {two}" for name, (one, two) in pairs.items() if one != two]
