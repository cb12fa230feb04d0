"""The thread that writes outcomes to MongoDB, many in one call.

Best effort: a caller never waits and never fails. While MongoDB is away, up to ROOM outcomes wait,
and are written once it is back. More are lost and counted. If the process is killed, those of the
last moments are lost. The reader finds out from `users` that a registration succeeded nevertheless.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from time import monotonic
from typing import Any

from pymongo import UpdateOne
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from app.models import make_index
from app.mongo import Client, address_of, open_client
from app.outcomes.outcome import Seen
from app.outcomes.record import OutcomeRecord
from app.settings import get_settings
from sqs_broker.errors import label
from sqs_broker.machine import threads
from sqs_broker.machine.seldom import Seldom
from sqs_broker.rules.backoff import half_jitter

logger = logging.getLogger(__name__)

#: Seconds that an outcome waits for others, to be written in one call.
GATHER = 0.1

#: Seconds after which a message that has not ended is written as pending.
UNDECIDED = 0.5

#: Most outcomes in one call.
BATCH = 1_000

#: Most outcomes that wait.
ROOM = 20_000

#: Longest pause after a failed write, in seconds. The first is up to FIRST_PAUSE.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0

#: Seconds for the last outcomes when the process ends.
FLUSH_TIMEOUT = 2.0

#: Tries of a batch of which MongoDB refuses something. Over a minute: an operator may repair the
#: collection meanwhile.
MOST_TRIES = 12

#: MongoDB's error codes if two upserts of a new id meet, and if a validator refuses a document.
DUPLICATE_KEY, NOT_VALID = 11_000, 121

Update = Callable[[Sequence[Seen]], None]


class Refused(OperationFailure):
    """MongoDB refused some documents of a batch. The others are stored."""

    def __init__(self, code: int, count: int, *, is_final: bool) -> None:
        super().__init__("MongoDB refused outcomes", code)
        self.count = count
        #: Whether another try would fail too.
        self.is_final = is_final


class Writer:
    """Takes outcomes from any thread, and writes them in its own, which starts with the first one.

    For one process. In one that is frozen between two calls (a Lambda function), call `flush` at
    the end of each.
    """

    def __init__(self, write: Update | None = None, gather: float = GATHER) -> None:
        """`write` stores outcomes and raises pymongo's errors; None: the collection in
        MONGO_URI."""
        self._write = write or Store().write
        self._gather = gather
        self._changed = threading.Condition()
        self._waiting: deque[Seen] = deque()
        self._undecided: dict[str, tuple[float, Seen]] = {}
        self._is_writing = False
        self._is_hurried = False
        self._sleeps = False
        self._failures = 0
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._pause = threading.Event()
        self._seldom = Seldom()

    def put(self, seen: Seen) -> None:
        """Have an outcome written soon. Returns at once."""
        with self._changed:
            self._undecided.pop(seen.id, None)
            self._add(seen)
            self._wake()

    def put_pending(self, seen: Seen) -> None:
        """Have it written as pending, unless an outcome follows soon. Returns at once."""
        with self._changed:
            if len(self._undecided) < ROOM:
                self._undecided[seen.id] = monotonic() + UNDECIDED, seen
            if self._thread is None or self._sleeps:
                self._wake()

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait up to `timeout` seconds until every outcome is written. Return whether it is.
        Returns at once while MongoDB is away."""
        with self._changed:
            self._is_hurried = True
            self._wake()
            self._changed.wait_for(lambda: self._is_empty() or self._failures, timeout)
            self._is_hurried = False
            return self._is_empty()

    def _add(self, seen: Seen) -> None:
        if len(self._waiting) >= ROOM:
            self._lost += 1
        else:
            self._waiting.append(seen)

    def _wake(self) -> None:
        if self._thread is None and not self._is_empty():
            self._thread = threads.start(self._run, "outcome-writer")
        # Not for each message: a thread that wakes up interrupts the event loop.
        if self._sleeps or self._is_hurried or len(self._waiting) in (1, BATCH):
            self._changed.notify_all()

    def _is_empty(self) -> bool:
        return not (self._waiting or self._undecided or self._is_writing)

    def _run(self) -> None:
        while True:
            batch = self._take()
            self._store(batch)
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()

    def _take(self) -> list[Seen]:
        with self._changed:
            while not self._waiting:
                self._sleeps = not self._undecided
                self._changed.wait(self._until_due())
                self._decide()
            self._sleeps = False
            self._changed.wait_for(
                lambda: self._is_hurried or len(self._waiting) >= BATCH, self._gather
            )
            self._decide()
            self._is_writing = True
            size = min(BATCH, len(self._waiting))
            return [self._waiting.popleft() for _ in range(size)]

    def _until_due(self) -> float | None:
        """Seconds until the first undecided one is written; None if there is none."""
        if self._is_hurried and self._undecided:
            return 0
        first = next(iter(self._undecided.values()), None)
        return None if first is None else max(0.0, first[0] - monotonic())

    def _decide(self) -> None:
        """Move those to the outcomes that have waited long enough. They are in order of time."""
        now = monotonic()
        for id_, (due_at, seen) in tuple(self._undecided.items()):
            if due_at > now and not self._is_hurried:
                break
            del self._undecided[id_]
            self._add(seen)

    def _store(self, batch: Sequence[Seen]) -> None:
        """Write a batch, again and again while MongoDB is away. What it refuses is lost in the
        end."""
        for tries in count(1):
            try:
                self._write(batch)
            except Refused as exc:
                if exc.is_final or tries >= MOST_TRIES:
                    self._failed(exc, exc.count)
                    return
                self._failed(exc, 0)
                self._pause.wait(half_jitter(FIRST_PAUSE, tries, LONGEST_PAUSE))
            except Exception as exc:
                # Broad on purpose: without this thread no further outcome would be written.
                self._failed(exc, 0)
                self._pause.wait(half_jitter(FIRST_PAUSE, self._failures, LONGEST_PAUSE))
            else:
                self._succeeded()
                return

    def _failed(self, exc: Exception, lost: int) -> None:
        with self._changed:
            self._failures += 1
            self._lost += lost
            self._changed.notify_all()
        if self._seldom.allows("failed", monotonic()):
            logger.warning(
                "Could not write the outcomes of registrations (%s). Messages are not affected.",
                label(exc),
                extra={"event": "outcomes.failed", "error": label(exc)},
            )

    def _succeeded(self) -> None:
        with self._changed:
            self._failures, lost = 0, self._lost
            self._lost = 0
        if lost:
            logger.warning(
                "%s outcomes of registrations were not stored: MongoDB was away for too long or "
                "refused them.",
                lost,
                extra={"event": "outcomes.lost", "count": lost},
            )


class Store:
    """The collection in MONGO_URI, with a client of its own, which is opened at the first write.
    For one thread of one process."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._opened_in: int | None = None
        self._has_index = False

    def write(self, batch: Sequence[Seen]) -> None:
        """Merge outcomes into the collection, in one call. Raises pymongo's errors."""
        try:
            self._merge(self._collection(), batch)
        except OperationFailure:
            raise
        except PyMongoError:
            # The client may know only former members of the replica set.
            self.close()
            raise

    def close(self) -> None:
        """Close the client. The next write opens a new one."""
        client, self._client = self._client, None
        if client is not None and self._opened_in == os.getpid():
            client.close()

    def _merge(self, collection: Collection[dict[str, Any]], batch: Sequence[Seen]) -> None:
        if not self._has_index:
            # Without it the documents stay for ever, but they are right. `doctor` reports it.
            with suppress(OperationFailure):
                make_index(collection, OutcomeRecord._meta["indexes"][0])
            self._has_index = True
        merge(collection, batch)

    def _collection(self) -> Collection[dict[str, Any]]:
        uri = get_settings().require_mongo_uri()
        if self._client is None or self._opened_in != os.getpid():
            self._client, self._opened_in = open_client(uri), os.getpid()
        name: str = OutcomeRecord._meta["collection"]
        return self._client[address_of(uri).database][name]


def merge(collection: Collection[dict[str, Any]], batch: Sequence[Seen]) -> None:
    """Merge outcomes into a collection, in one call. To repeat it changes nothing.

    Raises Refused if MongoDB took all but some, and pymongo's errors if it should be repeated.
    """
    try:
        collection.bulk_write(updates(batch), ordered=False)
    except BulkWriteError as exc:
        raise_errors(exc.details)


def updates(batch: Sequence[Seen]) -> list[UpdateOne]:
    """The updates of a bulk write."""
    forget_at = _forget_at()
    return [UpdateOne({"_id": seen.id}, seen.update(forget_at), upsert=True) for seen in batch]


def inserts(batch: Sequence[Seen]) -> list[dict[str, Any]]:
    """The documents of ids that are not stored yet."""
    forget_at = _forget_at()
    return [seen.document(forget_at) for seen in batch]


def _forget_at() -> datetime:
    return datetime.now(UTC) + timedelta(days=get_settings().once_retention_days)


def raise_errors(details: Mapping[str, Any]) -> None:
    """Raise the errors of a bulk write: see `merge`."""
    for error in (*details["writeConcernErrors"], *details["writeErrors"]):
        if error in details["writeConcernErrors"] or error["code"] == DUPLICATE_KEY:
            raise OperationFailure("the outcomes must be written again", error["code"])
    codes = [error["code"] for error in details["writeErrors"]]
    raise Refused(codes[0], len(codes), is_final=set(codes) == {NOT_VALID})
