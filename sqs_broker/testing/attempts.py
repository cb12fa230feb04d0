"""A store of failed runs in memory."""

import threading
from collections.abc import Mapping, Sequence

from sqs_broker.rules.attempts import Record


class MemoryAttempts:
    """An `AttemptStore` in memory (sqs_broker/rules/attempts.py). Thread-safe."""

    def __init__(self) -> None:
        self.is_away = False
        """Whether nothing can be read or written, as if MongoDB were down."""
        self.reads: list[tuple[str, ...]] = []
        """The MessageIds of each read."""
        self.writes: list[Mapping[str, Record]] = []
        """The changes of each write."""
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()

    def read(self, message_ids: Sequence[str]) -> Mapping[str, Record]:
        """The records of these messages."""
        with self._lock:
            self.reads.append(tuple(message_ids))
            known = {} if self.is_away else self._records
            return {id_: known[id_] for id_ in message_ids if id_ in known}

    def add(self, changes: Mapping[str, Record]) -> None:
        """Add these numbers to the records."""
        with self._lock:
            self.writes.append(dict(changes))
            if not self.is_away:
                for id_, change in changes.items():
                    self._records[id_] = self._records.get(id_, Record()) | change
