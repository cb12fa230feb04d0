"""One run: the API, a worker behind it, requests, and what became of each registration."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from bench import api, database
from bench.candidates import OURS
from bench.errors import BenchError
from bench.lab import Lab, Stage
from bench.load.sending import Sent, send
from bench.load.shape import Shape
from devstack import ports

#: Added to each call to SQS, in milliseconds.
DELAY_MS = 10.0
#: Seconds between two looks at the queue.
LOOK = 0.5
#: Seconds after the last request in which every registration becomes final.
SETTLE = 120.0
#: Requests at the same time that ask for states, and seconds between two rounds of them.
ASKING, PAUSE = 4, 0.5

#: The states that are final; see docs/http.md.
FINAL = frozenset({"registered", "conflict", "failed", "expired"})


@dataclass(frozen=True)
class Depth:
    """The queue at one moment."""

    at: float
    """Seconds since the epoch."""
    waiting: int
    in_flight: int


@dataclass
class Measured:
    """Everything about one run."""

    shape: Shape
    sender: str
    began: float = 0.0
    """Seconds since the epoch."""
    sent: list[Sent] = field(default_factory=list)
    depths: list[Depth] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    """Of the accepted registrations."""
    stored: dict[str, float] = field(default_factory=dict)
    """When each user was stored, in seconds since the epoch, by mongod's clock."""
    ended: float = 0.0
    """When the last request had its answer, in seconds since the epoch."""
    settled_after: float | None = None
    """Seconds from then until the API had said that all are final, one after the other; None if it
    had not within SETTLE."""

    @property
    def accepted(self) -> list[Sent]:
        """The requests that were accepted."""
        return [each for each in self.sent if each.id is not None]

    @property
    def errors(self) -> Counter[str]:
        """How many requests failed, by the kind of error."""
        return Counter(each.kind for each in self.sent if each.kind is not None)

    @property
    def due(self) -> int:
        """Requests that were to be sent."""
        return sum(1 for _ in self.shape.due())

    @property
    def not_sent(self) -> int:
        """Requests that were due, and for which no client was free. k6 counts the requests of a
        ramp a little otherwise, so few are none."""
        missing = self.due - len(self.sent)
        return missing if missing > max(5, self.due // 100) else 0

    def faults(self) -> list[str]:
        """What breaks the promise that an accepted registration ends."""
        found = []
        accepted = self.accepted
        if not accepted:
            found.append("no registration was accepted")
        if open_ := sum(count for state, count in self.states.items() if state not in FINAL):
            found.append(f"{open_} accepted registrations are not final")
        if self.states.total() != len(accepted):
            found.append(f"{len(accepted)} were accepted, and {self.states.total()} have a state")
        stored = sum(each.user in self.stored for each in accepted)
        if stored != self.states["registered"]:
            found.append(f"{self.states['registered']} are registered, and {stored} are stored")
        return found


def measure(lab: Lab, shape: Shape, program: str | None, say: Callable[[str], None]) -> Measured:
    """Send the requests of a shape, and wait until each accepted registration is final."""
    measured = Measured(shape, "k6" if program else "the clients of bench/load/clients.py")
    with (
        lab.stage(OURS, "register", DELAY_MS, size=1) as stage,
        api.serving(stage, api.API) as server,
    ):
        # So that the load meets a worker that works, and not one that starts.
        stage.first_delete()
        say(f"{measured.sender}: about {measured.due} requests within {shape.seconds} s.")
        measured.began = time.time()
        with _looking_at_the_queue(stage, measured.depths):
            url, run = f"http://{ports.HOST}:{server.port}", f"load-{int(measured.began)}"
            measured.sent = send(shape, url, run, lab.logs, program)
            measured.ended, last = time.time(), time.monotonic()
            say(f"{len(measured.accepted)} of {len(measured.sent)} requests were accepted.")
            _settle(stage, server.port, measured, last)
        measured.stored = database.stored_at(lab.mongo, stage.database)
    return measured


def _settle(stage: Stage, port: int, measured: Measured, last: float) -> None:
    """Ask the API for the state of each registration, until all are final."""
    ids = [each.id for each in measured.accepted if each.id is not None]
    states: dict[str, str] = {}
    end = last + SETTLE
    while time.monotonic() < end:
        stage.check()
        if not measured.depths or measured.depths[-1].waiting == 0:
            states |= _states(port, [id_ for id_ in ids if states.get(id_) not in FINAL])
            if all(states.get(id_) in FINAL for id_ in ids):
                measured.settled_after = time.monotonic() - last
                break
        time.sleep(PAUSE)
    else:
        states |= _states(port, [id_ for id_ in ids if id_ not in states])
    measured.states = Counter(states.get(id_, "unknown") for id_ in ids)


def _states(port: int, ids: Sequence[str]) -> dict[str, str]:
    parts = [ids[start::ASKING] for start in range(ASKING)]
    with ThreadPoolExecutor(ASKING) as pool:
        found = pool.map(lambda part: _states_in_turn(port, part), parts)
    return {id_: state for part in found for id_, state in part.items()}


def _states_in_turn(port: int, ids: Sequence[str]) -> dict[str, str]:
    states = {}
    with closing(http.client.HTTPConnection(ports.HOST, port, timeout=30)) as connection:
        for id_ in ids:
            connection.request("GET", f"/registrations/{id_}")
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 200:
                states[id_] = str(json.loads(content)["state"])
            elif answer.status != 404:
                raise BenchError(f"GET /registrations/{{id}}: {answer.status}")
    return states


@contextmanager
def _looking_at_the_queue(stage: Stage, depths: list[Depth]) -> Iterator[None]:
    """Adds how deep the queue is, from time to time."""
    enough = threading.Event()

    def look() -> None:
        with closing(stage.lab.server.sqs.client()) as client:
            while not enough.is_set():
                told = client.get_queue_attributes(
                    QueueUrl=stage.place.queues.url, AttributeNames=["All"]
                )["Attributes"]
                waiting = int(told["ApproximateNumberOfMessages"])
                in_flight = int(told["ApproximateNumberOfMessagesNotVisible"])
                depths.append(Depth(time.time(), waiting, in_flight))
                enough.wait(LOOK)

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield
    finally:
        enough.set()
        looker.join()
