"""How long until another worker has stored what a killed one left."""

import os
import signal
import time
from contextlib import suppress

from bench import processes
from bench.candidates import Candidate
from bench.errors import BenchError
from bench.lab import VISIBILITY_TIMEOUT, Lab, Stage
from bench.results import Recovery
from devstack.process import Process

MESSAGES = 3000
#: Stored before the kill.
ENOUGH = 300
#: Seconds: two visibility timeouts, and to spare.
PATIENCE = 2 * VISIBILITY_TIMEOUT + 30


def measure(lab: Lab, candidate: Candidate) -> Recovery:
    """Kill a busy worker and all its processes with SIGKILL, start another one in its place.

    Raises BenchError where a message is not stored within two visibility timeouts.
    """
    with lab.stage(candidate, "register", 10, size=MESSAGES) as stage:
        _wait_until_stored(stage, ENOUGH)
        killed = time.monotonic()
        _kill(stage.workers.pop())
        left = _in_flight(stage)
        with lab.worker(stage) as other:
            stage.workers.append(other)
            _wait_until_stored(stage, MESSAGES)
            return Recovery(candidate.name, VISIBILITY_TIMEOUT, left, time.monotonic() - killed)


def _kill(worker: Process) -> None:
    # The parent first, so that it starts no child in place of a killed one.
    for pid in processes.below(worker.guard_pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _in_flight(stage: Stage) -> int:
    client = stage.lab.server.sqs.client()
    try:
        told = client.get_queue_attributes(
            QueueUrl=stage.place.queues.url,
            AttributeNames=["ApproximateNumberOfMessagesNotVisible"],
        )
    finally:
        client.close()
    return int(told["Attributes"]["ApproximateNumberOfMessagesNotVisible"])


def _wait_until_stored(stage: Stage, users: int) -> None:
    end = time.monotonic() + PATIENCE
    while (stored := stage.stored()) < users:
        stage.check()
        if time.monotonic() > end:
            raise BenchError(
                f"{stage.candidate.name}: {users - stored} of {users} messages not stored"
            )
        time.sleep(0.02)
