"""What a message costs a worker that is not full, and what users take in MongoDB."""

import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace

from bench import database, processes
from bench.candidates import Candidate
from bench.errors import BenchError
from bench.figures import delays, percentile
from bench.lab import Lab, Stage
from bench.results import Load, Storage, difference

#: Messages that warm the worker up.
WARM_UP = 40
#: Seconds for what is still in the queue when the flow ends.
REST = 5.0


@dataclass(frozen=True)
class Look:
    """All counters at one moment."""

    at: float
    worker_cpu: float | None
    database_cpu: float | None
    commands: Counter[str]
    logged: int


def measure(
    lab: Lab, candidate: Candidate, delay_ms: float, rate: float, seconds: float
) -> tuple[Load, Storage | None]:
    """Send `rate` registrations a second for so long, if it is not 0. Also returns what the users
    take afterwards, if there are any. Raises BenchError if a message is deleted whose user is not
    stored."""
    with (
        lab.stage(candidate, "register", delay_ms, size=WARM_UP) as stage,
        closing(lab.sender(stage.place.queues.url)) as sender,
    ):
        stage.first_delete()
        stage.wait_until_deleted(WARM_UP, REST)
        before = _look(stage)
        body = candidate.body("register", stage.place.queue)
        sent = sender.flow(body, rate, seconds)
        load = _load(stage, delay_ms, rate, len(sent), before, _look(stage))
        stage.wait_until_deleted(WARM_UP + len(sent), REST)
        if stage.stored() < stage.proxy.progress().deleted:
            raise BenchError(f"{candidate.name} deleted messages that it had not stored")
        taken = delays(sent, database.stored_at(lab.mongo, stage.database))
        load = replace(load, p50=percentile(taken, 0.5), p99=percentile(taken, 0.99))
        return load, database.storage(lab.mongo, stage.database) if sent else None


def _look(stage: Stage) -> Look:
    worker = stage.workers[0]
    return Look(
        time.monotonic(),
        processes.cpu_below(worker.guard_pid),
        processes.cpu_below(stage.lab.mongo_server.process.guard_pid),
        database.commands(stage.lab.mongo),
        worker.log.stat().st_size,
    )


def _load(
    stage: Stage, delay_ms: float, asked: float, sent: int, before: Look, after: Look
) -> Load:
    within = [call for call in stage.proxy.calls() if before.at <= call[0] < after.at]
    return Load(
        config=stage.candidate.name,
        added_ms=delay_ms,
        asked=asked,
        seconds=after.at - before.at,
        sent=sent,
        deleted=sum(messages for _, action, messages in within if action.startswith("Delete")),
        calls=dict(Counter(action for _, action, _ in within)),
        commands=difference(after.commands, before.commands),
        worker_cpu=_minus(after.worker_cpu, before.worker_cpu),
        database_cpu=_minus(after.database_cpu, before.database_cpu),
        log_bytes=after.logged - before.logged,
        p50=None,
        p99=None,
    )


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
