"""What is in the dead-letter queue: messages that were to fail, as often as they may, alone."""

from collections import Counter
from dataclasses import dataclass, field

from sqs_broker.rules.dead_letter import read_note
from tests.chaos.plan import FAILING_TASK, MOST_RUNS
from tests.chaos.sides import RUNS
from tests.chaos.stage import Stage


@dataclass
class DeadLetters:
    """All of them at the end of a run."""

    could_run: list[str] = field(default_factory=list)
    """The messages that were not to fail, with their reasons."""
    runs: dict[str, int] = field(default_factory=dict)
    """The failed runs of each message that was to fail."""
    miscounted: list[str] = field(default_factory=list)
    """Those of them that have failed another number of times than they may."""


def is_to_fail(id_: str) -> bool:
    """Whether the task of this message fails in each run."""
    return id_.startswith(f"{FAILING_TASK}-")


def is_counted(runs: int, dead_letters: int, reason: str, *, is_exact: bool) -> bool:
    """Whether a failing message ran as often as it may, and its dead letter says so. If not exact,
    it may have run more often, but never less."""
    if is_exact:
        return runs == MOST_RUNS and dead_letters == 1 and f"failed runs: {MOST_RUNS}," in reason
    return runs >= MOST_RUNS


def read(stage: Stage, *, is_exact: bool) -> DeadLetters:
    """What is there now. It stays in the queue."""
    found = DeadLetters()
    runs = Counter((stage.directory / RUNS).read_text().split())
    times: Counter[str] = Counter()
    for letter in stage.queues.dead_letters():
        note = read_note(letter.get("MessageAttributes", {})) or {}
        id_, reason = note.get("message_id", letter["Body"]), note.get("reason", "no reason")
        if not is_to_fail(id_):
            found.could_run.append(f"{id_}: {reason}")
            continue
        times[id_] += 1
        found.runs[id_] = runs[id_]
        if not is_counted(runs[id_], times[id_], reason, is_exact=is_exact):
            found.miscounted.append(f"{id_}: {runs[id_]} runs, {reason}")
    return found
