"""What the routes share: keys, rates, gatherers, outcomes, and whether the process stops."""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from starlette.requests import Request

from app.api.gatherer import Gatherer, Mark
from app.api.headers import header
from app.api.keys import Client, Keys, Rates, Scope
from app.api.outcome_store import OutcomeStore
from app.api.problems import Fault, Kind, Problem, invalid, too_large
from sqs_broker.sqs.requests import Outgoing

#: Most calls of `OutcomeStore.accepted` at the same time. Of more, the ids are not stored.
MOST_RECORDINGS = 200

#: Seconds to wait for these calls when the process stops, or a function returns.
RECORDING_SECONDS = 5.0

LONGEST_KEY = 128

#: A string of a structured field (RFC 9651).
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_PRINTABLE = re.compile(rf"[ -~]{{1,{LONGEST_KEY}}}")


class Phase(StrEnum):
    """What the process does."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Service:
    """Everything that the routes need. `gatherers` are by the name of the task."""

    def __init__(
        self,
        *,
        gatherers: Mapping[str, Gatherer],
        outcomes: OutcomeStore,
        keys: Keys,
        rates: Rates,
        count_queues: Callable[[], Iterable[Mapping[str, Any]]],
        most_bytes: int,
        tracing: Any = None,
    ) -> None:
        self.tracing = tracing
        self.gatherers = gatherers
        self.outcomes = outcomes
        self.count_queues = count_queues
        self.phase = Phase.STARTING
        self.stopping = asyncio.Event()
        self._keys = keys
        self._rates = rates
        self._most_bytes = most_bytes
        self._recorded: dict[str, datetime] = {}
        self._recordings: set[asyncio.Task[None]] = set()

    @property
    def has_keys(self) -> bool:
        """Whether a request needs an API key."""
        return bool(self._keys)

    @property
    def is_draining(self) -> bool:
        """Whether the process stops."""
        return self.phase is Phase.DRAINING

    def begin_stop(self) -> None:
        """From now on, nobody waits for a final state."""
        self.phase = Phase.DRAINING
        self.stopping.set()

    async def recorded(self) -> None:
        """Wait until it is stored that SQS took what it took, for a bounded time."""
        if self._recordings:
            await asyncio.wait(self._recordings, timeout=RECORDING_SECONDS)

    async def close(self) -> None:
        """Send what was gathered, store what was accepted, and close the connections."""
        for gatherer in set(self.gatherers.values()):
            await gatherer.close()
        await self.recorded()
        await self.outcomes.close()

    # Who asks ---------------------------------------------------------------------------------

    def admit(self, request: Request, *scopes: Scope, items: int = 1) -> Client:
        """The client of a request that needs one of these scopes, or any key. Counts its items.
        Raises Problem."""
        given = header(request, b"x-api-key")
        client = self._keys.client(given.encode("latin-1") if given is not None else None)
        if client is None:
            raise Problem(
                Kind.UNKNOWN_KEY,
                "Send an API key in the header X-API-Key.",
                headers={"WWW-Authenticate": "X-API-Key"},
            )
        request.scope["state"]["client"] = client.name or None
        if scopes and not any(client.may(scope) for scope in scopes):
            raise Problem(Kind.FORBIDDEN, f"It needs the scope {' or '.join(scopes)}.")
        if wait := self._rates.wait(client.name):
            raise Problem(
                Kind.RATE,
                "Items are counted for each API key, in each process.",
                headers={"Retry-After": str(wait)},
            )
        self._rates.take(client.name, items)
        return client

    def count(self, client: Client, items: int) -> None:
        """Count further items of a request."""
        self._rates.take(client.name, items)

    # Messages ---------------------------------------------------------------------------------

    def message(self, request: Request, task: str, id_: str, data: str) -> Outgoing:
        """The message of a task with this data, in JSON. Raises Problem if SQS would refuse it."""
        facts = request.scope["state"]
        names = ("request_id", "traceparent", "tracestate")
        attributes = {name: _text(facts[name]) for name in names if facts.get(name)}
        message = Outgoing(f'{{"id":"{id_}","action":"{task}","data":{data}}}', attributes)
        if message.size > self._most_bytes:
            raise too_large(f"A message may have at most {self._most_bytes} bytes.")
        return message

    def sending(self, request: Request, task: str) -> AbstractContextManager[None]:
        """The span of the messages of this block, if there are spans: they carry it."""
        return nullcontext() if self.tracing is None else self._span(request, task)

    @contextmanager
    def _span(self, request: Request, task: str) -> Iterator[None]:
        facts = request.scope["state"]
        with self.tracing.send(self.gatherers[task].queue, sqs_broker__task=task) as carrier:
            before = dict(facts)
            facts |= carrier
            try:
                yield
            finally:
                facts["traceparent"] = before["traceparent"]

    def taken(self, marks: Sequence[Mark]) -> None:
        """Store that SQS took these registrations, without waiting for it."""
        if len(self._recordings) >= MOST_RECORDINGS:
            return
        now = datetime.now(UTC)
        self._recorded.update((mark.id, now) for mark in marks)
        task = asyncio.get_running_loop().create_task(self._record(marks))
        self._recordings.add(task)
        task.add_done_callback(self._recordings.discard)

    def taken_at(self, id_: str) -> datetime | None:
        """When SQS took a message whose acceptance is not stored yet."""
        return self._recorded.get(id_)

    async def _record(self, marks: Sequence[Mark]) -> None:
        users = [(mark.stock_id, mark.user_id) for mark in marks]
        try:
            await self.outcomes.accepted([mark.id for mark in marks], users)
        finally:
            for mark in marks:
                self._recorded.pop(mark.id, None)


def idempotency_key(request: Request) -> str | None:
    """The header Idempotency-Key, quoted or bare; None without it. Raises Problem."""
    if header(request, b"idempotency-key") is None:
        return None
    given = request.headers.getlist("idempotency-key")
    text = given[0].strip()
    if quoted := _QUOTED.fullmatch(text):
        text = re.sub(r"\\(.)", r"\1", quoted[1])
    if len(given) > 1 or not _PRINTABLE.fullmatch(text):
        detail = f"should be one value of 1 to {LONGEST_KEY} printable ASCII characters"
        raise invalid(Fault(detail, parameter="Idempotency-Key"))
    return text


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
