"""Workers on one full queue: what they do in a window of time."""

import time
from collections import Counter
from dataclasses import dataclass

from bench import database, processes
from bench.candidates import Candidate
from bench.errors import BenchError
from bench.lab import Lab, Stage
from bench.results import Round, difference

#: Seconds between two looks.
LOOK = 0.1
#: The window ends early where less than this share of the backlog is left: an end is not a rate.
LEFT_OVER = 0.05


@dataclass(frozen=True)
class Cell:
    """What is measured."""

    candidate: Candidate
    task: str
    delay_ms: float
    workers: int = 1
    queues: int = 1
    """Queues that the worker receives from. All but one are empty."""


@dataclass(frozen=True)
class Effort:
    """How long and how much."""

    backlog: int
    """Messages."""
    window: float
    """Seconds."""
    warm_up: float = 0.7
    """Seconds after the first delete that are not counted: connections are made, processes warm
    up."""


def measure(lab: Lab, cell: Cell, effort: Effort) -> Round:
    """Start the workers on a queue of their own, measure, stop them.

    Raises BenchError where a worker does not work, or deletes what it did not store.
    """
    with lab.stage(
        cell.candidate,
        cell.task,
        cell.delay_ms,
        size=effort.backlog,
        workers=cell.workers,
        queues=cell.queues,
    ) as stage:
        measured = _watched(stage, effort)
        deleted = stage.proxy.progress().deleted
        if cell.task == "register" and stage.stored() < deleted:
            raise BenchError(f"{cell.candidate.name} deleted messages that it had not stored")
    return measured


@dataclass(frozen=True)
class Look:
    """All counters at one moment."""

    at: float
    cpu: list[float | None]
    """Of each worker, the proxy, the SQS server, mongod and the whole machine."""
    commands: Counter[str]
    stored: int


def _watched(stage: Stage, effort: Effort) -> Round:
    time.sleep(max(stage.first_delete() + effort.warm_up - time.monotonic(), 0))
    before = _look(stage)
    _wait(stage, before.at + effort.window, effort.backlog * (1 - LEFT_OVER))
    after = _look(stage)
    memory = _memory(stage)

    within = [call for call in stage.proxy.calls() if before.at <= call[0] < after.at]
    deleted = sum(messages for _, action, messages in within if action.startswith("Delete"))
    if not deleted:
        raise BenchError(f"{stage.candidate.name}: nothing was deleted in the window")
    *workers, proxy, server, mongod, machine = (
        None if first is None or last is None else last - first
        for first, last in zip(before.cpu, after.cpu, strict=True)
    )
    ours = _sum([*workers, proxy, server, mongod])
    return Round(
        seconds=after.at - before.at,
        deleted=deleted,
        calls=dict(Counter(action for _, action, _ in within)),
        commands=difference(after.commands, before.commands),
        worker_cpu=_sum(workers),
        proxy_cpu=proxy,
        server_cpu=server,
        memory=memory,
        stored=after.stored - before.stored,
        database_cpu=mongod,
        rest_cpu=None if machine is None or ours is None else max(machine - ours, 0.0),
    )


def _wait(stage: Stage, until: float, enough: float) -> None:
    while (left := until - time.monotonic()) > 0 and stage.proxy.progress().deleted < enough:
        stage.check()
        time.sleep(min(LOOK, left))


def _look(stage: Stage) -> Look:
    lab = stage.lab
    watched = [*stage.workers, stage.proxy.process, lab.server.sqs.process]
    watched.append(lab.mongo_server.process)
    cpu = [processes.cpu_below(process.guard_pid) for process in watched]
    return Look(
        time.monotonic(),
        [*cpu, processes.cpu_of_machine()],
        database.commands(stage.lab.mongo),
        stage.stored_about(),
    )


def _memory(stage: Stage) -> int | None:
    used = [processes.usage_below(worker.guard_pid) for worker in stage.workers]
    return sum(each.memory for each in used if each) if all(used) else None


def _sum(numbers: list[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
