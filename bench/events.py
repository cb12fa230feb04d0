"""What events cost a worker at a steady rate of tasks, and whether a listener hears them all."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from bench import database, processes
from bench.candidates import OURS, Candidate
from bench.errors import BenchError
from bench.lab import Lab, Stage
from bench.results import Events, difference
from bench.traffic import ROOT
from devstack.process import Process
from devstack.waiting import wait_until

#: Received, started, succeeded.
EVENTS_A_TASK = 3
WARM_UP = 40
#: Seconds until a listener hears a worker's first heartbeat, and until it has heard the last event.
READY_SECONDS = 60
REST = 3.0


def measure(lab: Lab, candidate: Candidate, rate: float, seconds: float) -> Events:
    """Run tasks that make `rate` events a second, where the candidate sends events."""
    with lab.stage(candidate, "noop", 0, size=WARM_UP) as stage:
        stage.first_delete()
        stage.wait_until_deleted(WARM_UP, REST)
        if candidate is not OURS:
            return _flow(stage, rate, seconds)
        with _listener(stage) as listener:
            measured = _flow(stage, rate, seconds)
            time.sleep(REST)
        told = json.loads(listener.last_words())
    return replace(measured, heard=told["heard"], lag_p99=told["lag_p99"])


def _flow(stage: Stage, rate: float, seconds: float) -> Events:
    before, used = database.commands(stage.lab.mongo), _cpu(stage)
    started, settled = time.monotonic(), stage.proxy.progress().deleted
    body = stage.candidate.body(stage.task, stage.place.queue)
    with closing(stage.lab.sender(stage.place.queues.url)) as sender:
        sent = sender.flow(body, rate / EVENTS_A_TASK, seconds)
    passed = time.monotonic() - started
    used_then, commands = _cpu(stage), difference(database.commands(stage.lab.mongo), before)
    return Events(
        config=stage.candidate.name,
        rate=rate,
        seconds=passed,
        sent=len(sent),
        settled=stage.proxy.progress().deleted - settled,
        cores=None if used is None or used_then is None else (used_then - used) / passed,
        commands_a_second=sum(commands.values()) / passed,
    )


def _cpu(stage: Stage) -> float | None:
    return processes.cpu_below(stage.workers[0].guard_pid)


@contextmanager
def _listener(stage: Stage) -> Iterator[Process]:
    log = stage.lab.logs / "listener.log"
    environment = stage.candidate.environment(stage.place, stage.task) | {"PYTHONPATH": str(ROOT)}
    with Process(
        "the listener",
        [sys.executable, "-m", "bench.listener"],
        log=log,
        grace=10,
        environment=environment,
        directory=stage.lab.logs,
    ) as listener:

        def hears() -> bool:
            listener.check()
            return "ready" in log.read_text()

        try:
            wait_until(hears, READY_SECONDS, "an event of the worker")
        except TimeoutError as exc:
            raise BenchError(f"{stage.candidate.name}: {exc}: {listener.last_words()}") from None
        yield listener
