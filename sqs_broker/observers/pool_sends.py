"""What the processes of a prefork pool send, for `/metrics` of the main process.

Their other figures are those of the main process, which receives and settles each message.
"""

import os
import threading
from collections.abc import Sequence

from sqs_broker.machine.shared_sums import SharedSums
from sqs_broker.observers import instruments as of
from sqs_broker.observers.figures import Labels, Note, Recorder
from sqs_broker.observers.instruments import Instrument
from sqs_broker.observers.steps import Step


class PoolSends:
    """A `Recorder` in a process of the pool, and what reads it in the main process. Thread-safe."""

    def __init__(self) -> None:
        self._sums: SharedSums | None = None
        self._opened_by: int | None = None
        self._joined_by: int | None = None
        self._lock = threading.Lock()
        self._read: dict[str, int] = {}

    @property
    def is_joined(self) -> bool:
        """Whether this is a process of the pool that can add."""
        return self._joined_by == os.getpid()

    def open(self, queues: Sequence[str]) -> None:
        """Prepare the memory, in the main process and before it forks. A second call does
        nothing: the pool may be made again."""
        if self._opened_by != os.getpid():
            self._opened_by, self._sums, self._read = os.getpid(), SharedSums(queues), {}

    def join(self, index: int) -> None:
        """Add as the process with this number in the pool from now on. Does nothing if the memory
        is not shared with this process: it was not prepared, or the process is no fork."""
        if self._sums is not None:
            self._sums.take(index)
            self._joined_by = os.getpid()

    def add(self, instrument: Instrument, labels: Labels, number: int = 1, /) -> None:
        """See Recorder. What is no message sent is left out."""
        if instrument is of.SENT and self._sums is not None:
            self._sums.add(labels[0], number)

    def record(self, instrument: Instrument, labels: Labels, value: float, /) -> None:
        """See Recorder. Does nothing: a process of the pool measures nothing."""

    def noting(self, step: Step, /) -> Note:
        """See Recorder. It does nothing: the main process knows each step of a message."""
        return lambda labels, measured: None

    def pass_on(self, recorder: Recorder) -> None:
        """Add what the pool has sent since the last call, in the main process."""
        if self._sums is None:
            return
        with self._lock:
            totals, before = self._sums.totals(), self._read
            self._read = totals
        for queue, total in totals.items():
            if new := total - before.get(queue, 0):
                recorder.add(of.SENT, (queue,), new)


#: Of this process and those that it forks.
pool_sends = PoolSends()
