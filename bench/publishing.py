"""What sending costs: `publish_many` beside a `.delay` for each message.

Also the program that sends: python -m bench.publishing many|many8|each MESSAGES
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from statistics import median

from bench.bodies import arguments
from bench.candidates import OURS
from bench.lab import Lab, Stage
from bench.results import FirstUse, Publishing
from bench.sender import user_id
from bench.traffic import ROOT
from devstack.process import Process

#: Seconds of one measurement.
PATIENCE = 120
#: Calls after the first.
LATER = 300
WAYS = {
    "many": "publish_many",
    "many8": "publish_many, 8 calls at a time",
    "each": ".delay for each",
}


def measure(lab: Lab, way: str, messages: int, delay_ms: float) -> Publishing:
    """Send so many registrations from a process of its own, through the proxy."""
    with lab.stage(OURS, "register", delay_ms, workers=0) as stage:
        seconds, cpu = _run(stage, "bench.publishing", way, str(messages))
        calls = stage.proxy.calls()
    return Publishing(
        way=WAYS[way],
        messages=messages,
        # The process, its imports and its client of SQS are not what is asked.
        seconds=seconds,
        cpu=cpu,
        calls=dict(Counter(action for _, action, _ in calls[1:])),
    )


def first(lab: Lab, processes: int) -> FirstUse:
    """Let so many processes, one after the other, import the tasks and send."""
    with lab.stage(OURS, "register", 0, workers=0) as stage:
        runs = [_run(stage, "bench.first_use", str(LATER)) for _ in range(processes)]
    return FirstUse(*(median(figures) for figures in zip(*runs, strict=True)))


def _run(stage: Stage, module: str, *arguments: str) -> Sequence[float]:
    """The figures that a program writes."""
    program = [sys.executable, "-m", module, *arguments]
    environment = OURS.environment(stage.place, stage.task) | {"PYTHONPATH": str(ROOT)}
    log = stage.lab.logs / "publishing.log"
    with Process("the producer", program, log=log, grace=1, environment=environment) as sender:
        if sender.wait(PATIENCE) != 0:
            sender.check()
    return [float(figure) for figure in log.read_text().splitlines()[-1].split()]


def _send(way: str, messages: int) -> None:
    from app.tasks import register_user
    from sqs_broker.sqs.flight import CALLS
    from sqs_broker.sqs.publisher import publish_many

    users = [arguments(user_id()) for _ in range(messages)]
    publish_many(register_user, [])  # Opens the client.
    # The first message makes what the others find.
    register_user.delay(**arguments(user_id()))
    started, used = time.monotonic(), time.process_time()
    if way == "each":
        for user in users:
            register_user.delay(**user)
    else:
        calls = 8 if way == "many8" else CALLS
        assert publish_many(register_user, users, calls).sent == messages
    sys.stdout.write(f"{time.monotonic() - started} {time.process_time() - used}\n")


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]))
