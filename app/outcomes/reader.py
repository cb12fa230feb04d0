"""What the HTTP API asks MongoDB: outcomes, users and the running count. For one event loop.

`accepted` is best effort: what could not be written waits in this process, up to ROOM ids, and is
written once MongoDB is back. So an id that was accepted while MongoDB was away is unknown only if
the process ends before that, and only until a worker has received the message.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pymongo
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import BulkWriteError, PyMongoError

from app.counter import Counter
from app.errors import Unavailable
from app.models import User
from app.mongo import AsyncClient, address_of
from app.outcomes.outcome import CLOCKS, Seen, State
from app.outcomes.record import OutcomeRecord
from app.outcomes.watch import Watch
from app.outcomes.writer import BATCH, ROOM, Refused, inserts, raise_errors, updates
from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom
from sqs_broker.rules.backoff import half_jitter

logger = logging.getLogger(__name__)

#: Seconds for one question to MongoDB.
READ_TIMEOUT = 3.0

#: Seconds for one write of acceptances, and the longest that `accepted` waits for it.
WRITE_TIMEOUT = 5.0
PATIENCE = 0.25

#: Seconds from the beginning of one write of acceptances to that of the next one: at a high rate,
#: a write for each call to SQS would cost more than all its documents.
BETWEEN_WRITES = 0.05

#: Longest pause after a failed write, in seconds. The first is up to FIRST_PAUSE.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0

#: Seconds for the last acceptances, and for those who wait, when the process ends.
CLOSE_TIMEOUT = 2.0

#: Seconds of failures after which the client is replaced: it may know only former members.
CLIENT_PATIENCE = 15.0

#: Of a user, what is the program's own.
HIDDEN = {"_id": 0, "payload": 0, "registration.payload_hash": 0}

#: MongoDB's messages about a client that was closed hold the address.
AWAY = "MongoDB does not answer."


@dataclass(frozen=True)
class Outcome:
    """What became of one registration."""

    id: str
    state: str
    """pending, registered, conflict, failed or expired."""
    at: datetime
    reason: str | None = None
    """Why it failed or is a conflict: the reason on the dead letter."""
    user: Mapping[str, Any] | None = None
    """The user, if it is registered. Personal data."""
    conflicts: Sequence[Mapping[str, Any]] = ()
    """Later messages with this id whose payload was another: `at` and `reason` of each."""


@dataclass(frozen=True)
class Page:
    """Some users of a stock, in the order of their user ids."""

    users: Sequence[Mapping[str, Any]]
    next: str | None
    """What the next page comes after; None if this is the last one."""


@dataclass(frozen=True)
class _Accepted:
    at: datetime
    user: tuple[str, str] | None


@dataclass
class Outcomes:
    """Stores that registrations were accepted, and reads what became of them.

    Every method but `accepted` raises Unavailable if MongoDB does not answer within READ_TIMEOUT.
    """

    uri: str = field(repr=False)

    def __post_init__(self) -> None:
        self._client: AsyncClient | None = None
        self._failing_since: float | None = None
        self._accepted: dict[str, _Accepted] = {}
        self._recorder: asyncio.Task[None] | None = None
        self._recorded = asyncio.Event()
        self._failures = 0
        self._written_at = -BETWEEN_WRITES
        self._seldom = Seldom()
        self._watch = Watch(lambda: self._database[_OUTCOMES], self._call)

    # Acceptance -----------------------------------------------------------------------------------

    async def accepted(
        self, ids: Sequence[str], users: Sequence[tuple[str, str]] | None = None
    ) -> None:
        """Store that SQS took these messages. Never raises, and takes at most PATIENCE seconds.

        `users`: stock_id and user_id of each. With it, `registered` is answered even if the worker
        was killed before it could write the outcome.
        """
        now = datetime.now(UTC)
        keys: Sequence[tuple[str, str] | None] = users or [None] * len(ids)
        for id_, user in zip(ids, keys, strict=True):
            if len(self._accepted) >= ROOM and id_ not in self._accepted:
                self._log_failure("NoRoom")
                break
            self._accepted[id_] = _Accepted(now, user)
        if self._recorder is None or self._recorder.done():
            self._recorder = asyncio.get_running_loop().create_task(self._record())
        deadline = monotonic() + PATIENCE
        # In an outage nobody waits.
        while not self._failures and any(id_ in self._accepted for id_ in ids):
            if not await _within(self._recorded.wait(), deadline - monotonic()):
                return

    async def _record(self) -> None:
        """Write what was accepted, until nothing is left."""
        while self._accepted:
            await asyncio.sleep(self._written_at + BETWEEN_WRITES - monotonic())
            self._written_at = monotonic()
            batch = dict(list(self._accepted.items())[:BATCH])
            try:
                await self._write(batch)
            except Exception as exc:
                # Broad on purpose: one failed write must not end those after it.
                self._log_failure(label(exc.__cause__ or exc))
                self._failures += 1
                self._tell()
                await asyncio.sleep(half_jitter(FIRST_PAUSE, self._failures, LONGEST_PAUSE))
                continue
            self._failures = 0
            for id_, written in batch.items():
                if self._accepted.get(id_) is written:
                    del self._accepted[id_]
            self._tell()

    def _tell(self) -> None:
        recorded, self._recorded = self._recorded, asyncio.Event()
        recorded.set()

    async def _write(self, batch: Mapping[str, _Accepted]) -> None:
        seen = [
            Seen(id_, State.PENDING, each.at, user=each.user, margin=CLOCKS)
            for id_, each in batch.items()
        ]
        async with self._call(WRITE_TIMEOUT):
            if known := await self._insert(seen):
                try:
                    await self._database[_OUTCOMES].bulk_write(updates(known), ordered=False)
                except BulkWriteError as exc:
                    _raise_unless_final(exc)

    async def _insert(self, seen: Sequence[Seen]) -> Sequence[Seen]:
        """Store those whose ids are new, which is nearly all: an insert costs both sides much less
        than an update with conditions. Returns the others."""
        try:
            await self._database[_OUTCOMES].insert_many(inserts(seen), ordered=False)
        except BulkWriteError as exc:
            if exc.details["writeConcernErrors"]:
                raise
            return [seen[error["index"]] for error in exc.details["writeErrors"]]
        return ()

    def _log_failure(self, error: str) -> None:
        if self._seldom.allows("accepted", monotonic()):
            logger.warning(
                "Could not store that registrations were accepted (%s). They are sent all the "
                "same.",
                error,
                extra={"event": "outcomes.failed", "error": error},
            )

    # Reading --------------------------------------------------------------------------------------

    async def state(self, id: str) -> Outcome | None:
        """The present state; None if no message with this id is known."""
        # Read first: it may be written, and forgotten here, during the call.
        waiting = self._accepted.get(id)
        async with self._call():
            found = await self._database[_OUTCOMES].find_one({"_id": id})
            if found is None and waiting is None:
                return None
            key = _key_of(found) or (waiting.user if waiting else None)
            user = None if key is None else await self._user(*key)
        return _outcome(id, found, waiting, user)

    async def wait(self, id: str, seconds: float) -> Outcome | None:
        """The final state as soon as there is one, or the present one after `seconds`. The present
        one at once if too many wait or the process stops; None if the id is not known.

        If MongoDB does not answer in the end, as when a thousand ask it at once because the process
        stops, it is the state that was read before."""
        known: Outcome | None = None
        async with self._watch.waiter(id, seconds) as waiter:
            while True:
                # A change from here on ends the next `changed`, so no change is missed.
                waiter.clear()
                try:
                    found = await self.state(id)
                except Unavailable:
                    if waiter.is_over:
                        if known is None:
                            raise
                        return known
                else:
                    if found is None or found.state != State.PENDING or waiter.is_over:
                        return found
                    known = found
                await waiter.changed()

    def stop_waiting(self) -> None:
        """Let everybody who waits have the present state now, and let nobody wait any more."""
        self._watch.stop()

    async def users(self, stock_id: str, after: str | None, limit: int) -> Page:
        """At most `limit` users of a stock, by user id, after a user id. A user that is registered
        meanwhile appears in its place."""
        query: dict[str, Any] = {"stock_id": stock_id}
        if after is not None:
            query["user_id"] = {"$gt": after}
        async with self._call():
            cursor = self._database[_USERS].find(query, HIDDEN).sort("user_id", 1)
            found = await cursor.limit(limit + 1).to_list()
        page = found[:limit]
        following = page[-1]["user_id"] if len(found) > limit else None
        return Page([_shown(user) for user in page], following)

    async def user(self, stock_id: str, user_id: str) -> Mapping[str, Any] | None:
        """One user; None if there is none."""
        async with self._call():
            found = await self._user(stock_id, str(user_id))
        return None if found is None else _shown(found)

    async def count(self) -> int | float:
        """The running count of the task `increment`."""
        async with self._call():
            parts = await self._database[_COUNTERS].find({}, {"count": 1}).to_list()
        return sum(int(part["count"]) for part in parts)

    async def close(self) -> None:
        """Let those who wait go, write what was accepted (for at most CLOSE_TIMEOUT seconds), and
        close the client."""
        await self._watch.close(CLOSE_TIMEOUT)
        if self._recorder is not None:
            await _within(asyncio.shield(self._recorder), CLOSE_TIMEOUT)
            self._recorder.cancel()
            with suppress(asyncio.CancelledError):
                await self._recorder
        await self._drop_client()

    async def _user(self, stock_id: str, user_id: str) -> dict[str, Any] | None:
        key = {"stock_id": stock_id, "user_id": user_id}
        return await self._database[_USERS].find_one(key, HIDDEN)

    # The client -----------------------------------------------------------------------------------

    @property
    def _database(self) -> AsyncDatabase[dict[str, Any]]:
        address = address_of(self.uri)
        if self._client is None:
            self._client = address.async_client()
        return self._client[address.database]

    @asynccontextmanager
    async def _call(self, timeout: float = READ_TIMEOUT) -> AsyncIterator[None]:
        """Calls to MongoDB, within `timeout` seconds together. Raises Unavailable."""
        try:
            with pymongo.timeout(timeout):
                yield
        except PyMongoError as exc:
            now = monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since > CLIENT_PATIENCE:
                self._failing_since = None
                await self._drop_client()
            raise Unavailable(AWAY) from exc
        else:
            self._failing_since = None
            _raise_if_cancelled()

    async def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _outcome(
    id_: str,
    found: Mapping[str, Any] | None,
    waiting: _Accepted | None,
    user: Mapping[str, Any] | None,
) -> Outcome:
    if found is None:
        assert waiting is not None
        found = {"state": State.PENDING, "at": waiting.at}
    state, at, reason = State(found["state"]), found["at"], found.get("reason")
    record = (user or {}).get("registration") or {}
    if state is not State.REGISTERED and record.get("message_id") == id_:
        # Its worker was killed, or has not written to the collection yet.
        state, at, reason = State.REGISTERED, record["registered_at"], None
    return Outcome(
        id_,
        state.value,
        at,
        reason,
        _shown(user) if user is not None and state is State.REGISTERED else None,
        tuple({"at": each["at"], "reason": each["reason"]} for each in found.get("conflicts", ())),
    )


def _raise_unless_final(exc: BulkWriteError) -> None:
    try:
        raise_errors(exc.details)
    except Refused as refused:
        # A validator refused some: they are not written, whoever tries again.
        if not refused.is_final:
            raise


def _key_of(found: Mapping[str, Any] | None) -> tuple[str, str] | None:
    user = (found or {}).get("user")
    return (user["stock_id"], user["user_id"]) if user else None


def _shown(user: Mapping[str, Any]) -> dict[str, Any]:
    """A user in the spelling of the messages. Fields that were edited away are missing."""
    spelled = {
        "stockId": user.get("stock_id"),
        "userId": user.get("user_id"),
        "userInfo": user.get("user_info"),
        "index": user.get("index"),
        "money": user.get("money"),
        "loanCount": user.get("loan_count"),
        "lastActivityTime": user.get("last_activity_time"),
        "registeredAt": (user.get("registration") or {}).get("registered_at"),
    }
    return {name: value for name, value in spelled.items() if value is not None}


def _raise_if_cancelled() -> None:
    """Before Python 3.12 `asyncio.wait_for`, in which pymongo writes, may lose a cancellation."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _within(awaitable: Any, seconds: float) -> bool:
    """Whether it ended within `seconds`. Its error is not raised."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await awaitable
    except TimeoutError:
        return False
    return True


_OUTCOMES: str = OutcomeRecord._meta["collection"]
_USERS: str = User._meta["collection"]
_COUNTERS: str = Counter._meta["collection"]
