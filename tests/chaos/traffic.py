"""The messages: by every door, some of them twice, evenly over the time of a run."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from devstack.sqs import ACCESS_KEY, REGION
from tests.chaos.plan import BURST, DUPLICATE, EARLY, FAILING_TASK, LEAD, NEW_TASK

#: One of so many messages is sent twice.
TWICE = 20

#: Seconds between two tries to send what could not be sent.
AGAIN = 0.5

#: Seconds within which the messages of the new task come.
NEW_WITHIN = 2 * LEAD

#: Threads that send.
SENDERS = 3

Door = Callable[[str, str, dict[str, Any]], None]


@dataclass(frozen=True)
class Order:
    """One message to send."""

    id: str
    task: str
    fields: dict[str, Any]
    door: int
    is_twice: bool


@dataclass
class Traffic:
    """Sends `count` registrations, `count` increments, and `failing` messages whose task fails,
    within `seconds`."""

    doors: list[Door]
    count: int
    seconds: float
    seed: int
    failing: int = 0
    bursts: tuple[float, ...] = ()
    """When the messages of the next BURST seconds come at once."""
    sent_at: dict[str, float] = field(default_factory=dict)
    landed: Counter[str] = field(default_factory=Counter)
    tries: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Send from now on."""
        orders = self.orders()
        started = time.monotonic()
        for number in range(SENDERS):
            mine = list(enumerate(orders))[number::SENDERS]
            thread = threading.Thread(
                target=self._send_all, args=(mine, started, len(orders)), daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def start_new(self, count: int, is_known: Callable[[], bool]) -> None:
        """Send so many messages of the new task from now on, whether every worker has it
        (`is_known`) or not."""
        thread = threading.Thread(target=self._send_new, args=(count, is_known), daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, timeout: float) -> bool:
        """Whether all was sent in time."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def due(self, place: int, total: int) -> float:
        """When the message of this place is sent, in seconds since the start."""
        evenly = self.seconds * place / total
        return min([evenly, *(burst for burst in self.bursts if 0 <= evenly - burst < BURST)])

    def orders(self) -> list[Order]:
        """What is sent, in order: the same for each seed."""
        chance = random.Random(self.seed)
        kinds = [("registerUser", n) for n in range(self.count)]
        kinds += [("increment", n) for n in range(self.count)]
        kinds += [(FAILING_TASK, n) for n in range(self.failing)]
        chance.shuffle(kinds)
        return [self._order(chance, task, number) for task, number in kinds]

    def _order(self, chance: random.Random, task: str, number: int) -> Order:
        fields: dict[str, Any] = {"input": number}
        if task == "registerUser":
            fields = {
                "stock_id": "chaos",
                "user_id": f"u{number}",
                "user_info": {"nickname": f"nick {number}", "gender": "F"},
            }
        door = chance.randrange(len(self.doors))
        # Each message of a failing task fails by itself, so that would be two messages.
        is_twice = chance.randrange(TWICE) == 0 and task != FAILING_TASK
        return Order(f"{task}-{number}", task, fields, door, is_twice)

    def _send_all(self, orders: list[tuple[int, Order]], started: float, total: int) -> None:
        for place, order in orders:
            due = started + self.due(place, total)
            time.sleep(max(0.0, due - time.monotonic()))
            self._send(order)
            if order.is_twice:
                self._send(order)
                self.landed[DUPLICATE] += 1

    def _send_new(self, count: int, is_known: Callable[[], bool]) -> None:
        chance = random.Random(self.seed)
        started = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, started + NEW_WITHIN * number / count - time.monotonic()))
            if not is_known():
                self.landed[EARLY] += 1
            self._send(self._order(chance, NEW_TASK, number))

    def _send(self, order: Order) -> None:
        self.sent_at.setdefault(order.id, time.time())
        while True:
            self.tries += 1
            try:
                self.doors[order.door](order.task, order.id, order.fields)
            except Exception:
                # Broad on purpose: a sender that does not know whether it was heard says it again.
                time.sleep(AGAIN)
            else:
                return


def plain_json(task: str, id_: str, fields: dict[str, Any]) -> str:
    """The message as a program in another language writes it."""
    return json.dumps({"id": id_, "action": task, "data": fields})


def door_of_json(url: str, endpoint: str) -> Door:
    """Plain JSON."""
    client = new_client(endpoint)

    def send(task: str, id_: str, fields: dict[str, Any]) -> None:
        _said_id(client.send_message(QueueUrl=url, MessageBody=plain_json(task, id_, fields)))

    return send


def door_of_sns(url: str, endpoint: str) -> Door:
    """The same, as SNS delivers it."""
    client = new_client(endpoint)

    def send(task: str, id_: str, fields: dict[str, Any]) -> None:
        notification = {
            "Type": "Notification",
            "TopicArn": f"arn:aws:sns:{REGION}:000000000000:chaos",
            "Message": plain_json(task, id_, fields),
        }
        _said_id(client.send_message(QueueUrl=url, MessageBody=json.dumps(notification)))

    return send


def _said_id(answer: Any) -> None:
    # boto3 takes half an answer for a whole one, so a careful program looks.
    if "MessageId" not in answer:
        raise ValueError("SQS has not said that it took the message")


def door_of_celery(producer: Any) -> Door:
    """Celery's own `send_task`."""
    return lambda task, id_, fields: producer.send_task(task, kwargs=fields, task_id=id_)


def new_client(endpoint: str) -> Any:
    """boto3, as a program uses it that is no worker."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "sqs",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=ACCESS_KEY,
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2}),
    )
