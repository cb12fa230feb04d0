"""Records in MongoDB which deliveries of a message were failed runs (rules/attempts.py)."""

import threading
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import pymongo

from sqs_broker.control.outage import LONGEST_PAUSE, Outage
from sqs_broker.control.store import Store
from sqs_broker.rules.attempts import Record

#: Seconds that MongoDB has for one call. Meanwhile a receiver or a settler waits.
TIMEOUT = 2.0

#: Most records that wait for MongoDB. More are lost: then fewer failed runs are counted.
MOST_WAITING = 10_000

#: Most records of one write.
MOST_AT_ONCE = 1_000


class MongoAttempts:
    """An `AttemptStore` in the control database. Thread-safe.

    While MongoDB is unavailable, each call takes at most two seconds, and after a failure none is
    made for five to ten seconds. What could not be written is kept, is part of what this process
    reads, and is written with the next records.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        clock: Callable[[], float] = monotonic,
        timeout: float = TIMEOUT,
    ) -> None:
        self._store = store
        self._clock = clock
        self._timeout = timeout
        self._lock = threading.Lock()
        self._waiting: dict[str, Record] = {}
        self._outage = Outage("the numbers of failed runs", LONGEST_PAUSE)
        self._try_at = float("-inf")

    def read(self, message_ids: Sequence[str]) -> Mapping[str, Record]:
        """The records of these messages, as far as MongoDB answers."""
        found = self._call(lambda: self._store().attempts(message_ids)) or {}
        with self._lock:
            waiting = {id_: self._waiting[id_] for id_ in message_ids if id_ in self._waiting}
        return found | {id_: found.get(id_, Record()) | more for id_, more in waiting.items()}

    def add(self, changes: Mapping[str, Record]) -> None:
        """Add to the records now, or once MongoDB answers again."""
        some = self._take(changes)
        if self._call(lambda: self._store().add_attempts(some)) is None:
            self._keep(some)

    def _call(self, call: Callable[[], dict[str, Record]]) -> dict[str, Record] | None:
        """The result of a call; None if it failed, or was not made so soon after a failure."""
        with self._lock:
            if self._clock() < self._try_at:
                return None
        try:
            with pymongo.timeout(self._timeout):
                result = call()
        except Exception as exc:
            # Broad on purpose: nothing in the control database may keep a message from its task.
            with self._lock:
                self._try_at = self._clock() + self._outage.failed(exc)
            return None
        with self._lock:
            self._outage.is_over()
        return result

    def _take(self, changes: Mapping[str, Record]) -> dict[str, Record]:
        """These changes, together with some that wait."""
        with self._lock:
            some = dict(changes)
            for id_ in list(self._waiting)[: max(MOST_AT_ONCE - len(some), 0)]:
                some[id_] = some.get(id_, Record()) | self._waiting.pop(id_)
            return some

    def _keep(self, changes: Mapping[str, Record]) -> None:
        with self._lock:
            for id_, change in changes.items():
                self._waiting[id_] = self._waiting.pop(id_, Record()) | change
            for id_ in list(self._waiting)[: max(len(self._waiting) - MOST_WAITING, 0)]:
                del self._waiting[id_]
