"""The API on SQS in memory, with a store of outcomes in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from app.api.application import application
from app.api.bodies import Bodies
from app.api.gatherer import Gatherer
from app.api.keys import Rates, read_keys
from app.api.service import Phase, Service
from app.errors import Unavailable
from app.outcomes.reader import Outcome, Page
from app.registration_ids import INCREMENT, REGISTRATION
from sqs_broker.sqs.queue import Queue
from sqs_broker.testing import FakeSqs
from tests.unit.asgi import Client

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

#: One key for each set of scopes, and a second one of the same name.
KEYS = {"register": "k-1", "read": "k-2", "operate": "k-3", "all": "k-4", "other": "k-5"}
SCOPES = {"all": "register+read+operate", "other": "register"}


def entry(name: str, key: str, scopes: str) -> str:
    return f"{name}:{scopes}:{sha256(key.encode()).hexdigest()}"


API_KEYS = ",".join(entry(name, key, SCOPES.get(name, name)) for name, key in KEYS.items())


QUEUE = {
    "queue": "jobs",
    "isKnown": True,
    "visible": 1,
    "inFlight": 0,
    "delayed": 0,
    "oldest": None,
    "deadLettersOf": None,
}

#: Seconds that nothing here comes near to.
LONG = 30.0


async def until(condition: Callable[[], object]) -> None:
    """Returns once the condition is true."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def known(id_: str, state: str, **more: Any) -> Outcome:
    """What became of a registration."""
    return Outcome(id_, state, AT, **more)


class InMemory:
    """Outcomes in memory."""

    def __init__(self) -> None:
        self.states: dict[str, Outcome] = {}
        self.by_key: dict[tuple[str, Any], dict[str, Any]] = {}
        self.accepted_users: list[tuple[str, str]] = []
        self.is_away = False
        self.is_closed = False
        self.holds_accepted = asyncio.Event()
        self.holds_accepted.set()
        self.changed = asyncio.Event()

    def set(self, outcome: Outcome) -> None:
        self.states[outcome.id] = outcome
        self.changed.set()

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("MongoDB does not answer.")

    async def accepted(self, ids: Sequence[str], users: Sequence[tuple[str, str]]) -> None:
        await self.holds_accepted.wait()
        self.accepted_users += users
        for id_ in ids:
            self.states.setdefault(id_, known(id_, "pending"))

    async def state(self, id: str) -> Outcome | None:
        self._check()
        return self.states.get(id)

    async def wait(self, id: str, seconds: float) -> Outcome | None:
        self._check()
        try:
            async with asyncio.timeout(seconds):
                while (found := self.states.get(id)) and found.state == "pending":
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            pass
        return self.states.get(id)

    async def users(self, stock_id: str, after: str | None, limit: int) -> Page:
        self._check()
        found = [
            (user_id, user)
            for (stock, user_id), user in sorted(self.by_key.items())
            if stock == stock_id and user_id > (after or "")
        ]
        page = found[:limit]
        return Page([user for _, user in page], page[-1][0] if len(found) > limit else None)

    async def user(self, stock_id: str, user_id: str) -> dict[str, Any] | None:
        self._check()
        return self.by_key.get((stock_id, user_id))

    async def count(self) -> int:
        self._check()
        return 7

    async def close(self) -> None:
        self.is_closed = True


@dataclass
class Running:
    """The API, ready."""

    fake: FakeSqs
    outcomes: InMemory
    service: Service
    app: Any
    client: Client

    def with_key(self, name: str) -> Client:
        return Client(self.app, {"X-API-Key": KEYS[name]})

    @property
    def bodies(self) -> list[str]:
        return self.fake.bodies(self.fake.options().queue("jobs").url)


@asynccontextmanager
async def running(
    fake: FakeSqs,
    *,
    keys: str = "",
    rate: float | None = None,
    send_timeout: float = 20.0,
    most_waiting: int = 10_000,
    origins: Sequence[str] = (),
    most_bytes: int = 1 << 20,
    read: Bodies | None = None,
    tracing: Any = None,
) -> AsyncIterator[Running]:
    """The API until the end of the block."""
    outcomes = InMemory()
    made: list[Gatherer] = []
    service = Service(
        gatherers={},
        outcomes=outcomes,
        keys=read_keys(keys),
        rates=Rates(rate),
        count_queues=lambda: [QUEUE],
        most_bytes=most_bytes,
        tracing=tracing,
    )
    made.append(
        Gatherer(
            Queue(fake.options().queue("jobs").url, fake),
            most_waiting=most_waiting,
            seconds=send_timeout,
            on_taken=service.taken,
        )
    )
    service.gatherers = {REGISTRATION: made[0], INCREMENT: made[0]}
    service.phase = Phase.READY
    app, _ = application(service, send_timeout=send_timeout, origins=origins, read=read)
    yield Running(fake, outcomes, service, app, Client(app))
    service.begin_stop()
    await service.close()
