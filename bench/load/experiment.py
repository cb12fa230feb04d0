"""A task that takes longer than the visibility timeout: this project beside stock Celery.

The application of this project does not start with such a visibility timeout, so its broker is
measured alone (bench/alone.py). Counts the runs of each message, and the dead letters.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

from bench.candidates import ALONE_8, STOCK_BEST, Candidate
from bench.errors import BenchError
from bench.lab import Lab, Stage
from bench.sender import user_id

#: Messages on each side, and receives until SQS moves a message to the dead-letter queue.
MESSAGES = 8
RECEIVES = 4
#: Bounds, in seconds.
MOST_DELAY, LEAST_VISIBILITY, MOST_VISIBILITY = 60, 3, 120
#: Seconds for the workers to start, and between two looks.
START, LOOK = 40, 0.2


@dataclass(frozen=True)
class Side:
    """What became of the messages of one consumer."""

    name: str
    runs: dict[str, int]
    """How often each message's task was started."""
    dead_letters: int
    left: int
    """Messages that are still in the queue: visible, in flight or delayed."""

    @property
    def counted(self) -> str:
        """How many messages ran how often."""
        counts = Counter(self.runs.values())
        return ", ".join(f"{count} ran {times}x" for times, count in sorted(counts.items()))

    def faults(self) -> list[str]:
        """What this project promises and this side does not do."""
        found = []
        if any(times != 1 for times in self.runs.values()):
            found.append(f"{self.name}: {self.counted}")
        if self.dead_letters:
            found.append(f"{self.name}: {self.dead_letters} dead letters")
        return found


def measure(lab: Lab, delay: int, visibility: int, say: Callable[[str], None]) -> list[Side]:
    """Both sides at the same time: stock Celery first. Raises BenchError if the numbers are out of
    bounds."""
    if not (1 <= delay <= MOST_DELAY and LEAST_VISIBILITY <= visibility <= MOST_VISIBILITY):
        raise BenchError(
            f"CONSUMER_DELAY has 1 to {MOST_DELAY} seconds, and VISIBILITY {LEAST_VISIBILITY} to "
            f"{MOST_VISIBILITY}."
        )
    longest = START + RECEIVES * max(delay, visibility) + delay + visibility
    say(
        f"{MESSAGES} messages for each; a task takes {delay} s; visibility timeout {visibility} s, "
        f"maxReceiveCount {RECEIVES}. At most {longest} s."
    )
    with ExitStack() as stack:
        stages = [
            stack.enter_context(
                lab.stage(
                    candidate,
                    "delayed",
                    0,
                    visibility_timeout=visibility,
                    max_receive_count=RECEIVES,
                )
            )
            for candidate in _candidates(delay, visibility)
        ]
        ids = [_send(stage) for stage in stages]
        end = time.monotonic() + longest
        quiet_since = None
        while time.monotonic() < end:
            for stage in stages:
                stage.check()
            # A run that began before its message left the queue still counts those after it.
            is_over = all(_left(stage) == 0 for stage in stages)
            quiet_since = (quiet_since or time.monotonic()) if is_over else None
            if quiet_since and time.monotonic() - quiet_since > delay + visibility:
                break
            time.sleep(LOOK)
        return [_side(stage, users) for stage, users in zip(stages, ids, strict=True)]


def table(sides: list[Side]) -> str:
    """Both sides as a table of Markdown."""
    lines = [
        "| consumer | messages | runs of each | runs in all | dead letters | left in the queue |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for side in sides:
        lines.append(
            f"| {side.name} | {len(side.runs)} | {side.counted} | {sum(side.runs.values())} "
            f"| {side.dead_letters} | {side.left} |"
        )
    return "\n".join(lines)


def _candidates(delay: int, visibility: int) -> list[Candidate]:
    seconds = {"BENCH_DELAY": str(delay)}
    transport = STOCK_BEST.settings["broker_transport_options"]
    stock = replace(
        STOCK_BEST,
        settings={
            **STOCK_BEST.settings,
            "broker_transport_options": {**transport, "visibility_timeout": visibility},
        },
        variables=seconds,
    )
    ours = replace(
        ALONE_8,
        variables={
            **seconds,
            "BENCH_VISIBILITY": str(visibility),
            "BENCH_RECEIVES": str(RECEIVES),
        },
    )
    return [stock, ours]


def _send(stage: Stage) -> list[str]:
    users = [user_id() for _ in range(MESSAGES)]
    body = stage.candidate.body(stage.task, stage.place.queue)
    with closing(stage.lab.sender(stage.place.queues.url)) as sender:
        sender.send([body(user) for user in users])
    return users


def _side(stage: Stage, users: list[str]) -> Side:
    runs = Counter(
        run["user_id"] for run in stage.lab.mongo[stage.database]["runs"].find({}, {"user_id": 1})
    )
    dead = _messages(stage, stage.place.queues.dead_letter_url)
    return Side(stage.candidate.name, {user: runs[user] for user in users}, dead, _left(stage))


def _left(stage: Stage) -> int:
    return _messages(stage, stage.place.queues.url)


def _messages(stage: Stage, url: str) -> int:
    with closing(stage.lab.server.sqs.client()) as client:
        told = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return (
        int(told["ApproximateNumberOfMessages"])
        + int(told["ApproximateNumberOfMessagesNotVisible"])
        + int(told["ApproximateNumberOfMessagesDelayed"])
    )
