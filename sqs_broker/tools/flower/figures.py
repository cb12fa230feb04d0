"""The figures of queues that Flower's `/metrics` has in addition to Flower's own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

from sqs_broker.observers import instruments as of
from sqs_broker.observers.exposition import text_of
from sqs_broker.observers.figures import Sample
from sqs_broker.tools.commands.queues import Row

#: Seconds for which a look at the queues is valid. Prometheus asks every 15 to 60 s.
VALID = 15.0


@dataclass(frozen=True)
class Look:
    """The queues, as they were when somebody looked."""

    rows: Sequence[Row] = field(default_factory=tuple)
    fault: str | None = None
    """Why it is not known which queues are paused; None if it is."""


class QueueFigures:
    """Remembers the latest look at the queues. Several who ask at once share one."""

    def __init__(
        self, look: Callable[[], Awaitable[Look]], clock: Callable[[], float] = monotonic
    ) -> None:
        self._look = look
        self._clock = clock
        self._lock = asyncio.Lock()
        self._looked_at = float("-inf")
        self._latest = Look()

    async def text(self) -> bytes:
        """The figures as Prometheus reads them."""
        async with self._lock:
            if self._clock() - self._looked_at >= VALID:
                self._latest = await self._look()
                self._looked_at = self._clock()
            return text_of(samples_of(self._latest))


def samples_of(look: Look) -> Iterator[Sample]:
    """The figures of the queues. A queue that SQS did not count is not readable, and has no others:
    0 would mean that it is empty."""
    for row in look.rows:
        if row.dead_letters_of is None and look.fault is None:
            yield Sample(of.QUEUE_PAUSED, (row.queue,), int(row.paused is not None))
        is_read = row.visible is not None
        yield Sample(of.READ, (row.queue,), int(is_read))
        if not is_read:
            continue
        counts = {"visible": row.visible, "in flight": row.in_flight, "delayed": row.delayed}
        dead_letters_of = row.dead_letters_of
        for state, count in counts.items():
            if dead_letters_of is None:
                yield Sample(of.DEPTH, (row.queue, state), count or 0)
            else:
                yield Sample(of.DEAD_LETTERS, (dead_letters_of, state), count or 0)
        if row.oldest is not None:
            yield Sample(of.QUEUE_AGE, (row.queue,), row.oldest)
