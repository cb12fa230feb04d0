"""What a worker costs while no message comes, and while none ends."""

import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench import processes
from bench.candidates import Candidate
from bench.errors import BenchError
from bench.lab import FIRST_SECONDS, Lab, Stage
from bench.results import Quiet
from devstack.waiting import wait_until

#: Seconds after the first messages until every window is full.
SETTLE = 3.0
#: Messages that fill the window of any worker.
FULL = 200
HOUR = 3600.0
#: Seconds of the first long poll.
FIRST = 20.0


def measure(lab: Lab, state: str, candidates: Sequence[Candidate], seconds: float) -> list[Quiet]:
    """All of them at the same time: they do next to nothing.

    `state` is `idle`, with an empty queue, or `full`, where each task takes 20 s.
    """
    size = FULL if state == "full" else 0
    with ExitStack() as stack:
        stages = [
            stack.enter_context(lab.stage(candidate, "long", 0, size=size))
            for candidate in candidates
        ]
        for stage in stages:
            _wait_until_it_receives(stage)
        if state == "full":
            time.sleep(SETTLE)
        started = time.monotonic()
        before = [_cpu(stage) for stage in stages]
        time.sleep(seconds)
        return [
            _quiet(stage, state, started, cpu) for stage, cpu in zip(stages, before, strict=True)
        ]


def calls_an_hour(answered: Sequence[float], seconds: float, *, state: str) -> float:
    """From the times of the answers in a window of so many seconds.

    An idle worker's are those of long polls, one after the other, and a window would cut one off:
    they are counted from the first answer to the last.
    """
    if state == "idle" and len(answered) > 1 and (span := answered[-1] - answered[0]) > 0:
        return (len(answered) - 1) / span * HOUR
    return len(answered) / seconds * HOUR


def _quiet(stage: Stage, state: str, started: float, cpu: float | None) -> Quiet:
    stage.check()
    seconds, cpu_now = time.monotonic() - started, _cpu(stage)
    used = processes.usage_below(stage.workers[0].guard_pid)
    calls = stage.proxy.calls()
    if state == "idle":
        # The first long poll began with the worker; its end is where counting can begin.
        started = next(at for at, action, _ in calls if action == "ReceiveMessage")
    answered = [at for at, _, _ in calls if at >= started]
    return Quiet(
        config=stage.candidate.name,
        state=state,
        seconds=seconds,
        cores=None if cpu is None or cpu_now is None else (cpu_now - cpu) / seconds,
        calls_an_hour=calls_an_hour(answered, seconds, state=state),
        memory=used.memory if used else None,
    )


def _cpu(stage: Stage) -> float | None:
    return processes.cpu_below(stage.workers[0].guard_pid)


def _wait_until_it_receives(stage: Stage) -> None:
    def receives() -> bool:
        stage.check()
        return any(action == "ReceiveMessage" for _, action, _ in stage.proxy.calls())

    try:
        wait_until(receives, FIRST_SECONDS, "a first receive")
    except TimeoutError as exc:
        last = stage.workers[0].last_words()
        raise BenchError(f"{stage.candidate.name}: {exc}: {last}") from None
