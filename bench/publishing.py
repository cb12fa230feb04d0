"""What sending costs: `publish_many` beside a `.delay` for each message.

Also the program that sends: python -m bench.publishing many|many8|each MESSAGES
"""

import sys
import time
from collections import Counter

from bench.bodies import arguments
from bench.candidates import OURS
from bench.lab import Lab
from bench.results import Publishing
from bench.sender import user_id
from bench.traffic import ROOT
from devstack.process import Process

#: Seconds of one measurement.
PATIENCE = 120
WAYS = {
    "many": "publish_many",
    "many8": "publish_many, 8 calls at a time",
    "each": ".delay for each",
}


def measure(lab: Lab, way: str, messages: int, delay_ms: float) -> Publishing:
    """Send so many registrations from a process of its own, through the proxy."""
    with lab.stage(OURS, "register", delay_ms, workers=0) as stage:
        program = [sys.executable, "-m", "bench.publishing", way, str(messages)]
        environment = OURS.environment(stage.place, stage.task) | {"PYTHONPATH": str(ROOT)}
        log = lab.logs / "publishing.log"
        with Process("the producer", program, log=log, grace=1, environment=environment) as sender:
            if sender.wait(PATIENCE) != 0:
                sender.check()
        calls = stage.proxy.calls()
    seconds, cpu = map(float, log.read_text().split()[-2:])
    return Publishing(
        way=WAYS[way],
        messages=messages,
        # The process, its imports and its client of SQS are not what is asked.
        seconds=seconds,
        cpu=cpu,
        calls=dict(Counter(action for _, action, _ in calls[1:])),
    )


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
