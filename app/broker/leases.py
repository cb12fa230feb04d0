"""The one table of deliveries in flight, keyed by delivery tag, and the window they fit in.

Keyed by tag and never by message id: one worker can hold two deliveries of one message.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: Messages SQS gives in one receive call.
BATCH = 10


@dataclass(frozen=True)
class Delivery:
    """One receive of a message, and the lease on it."""

    tag: str
    queue: str
    message_id: str
    """SQS's MessageId."""
    receipt_handle: str
    body: str
    attributes: Mapping[str, Mapping[str, Any]]
    """The message attributes, as SQS gave them."""
    count: int
    """ApproximateReceiveCount: how often SQS has delivered the message, this one included."""
    enqueued_at: datetime
    received_at: float
    """Monotonic seconds when the receive call was sent: the lease cannot be younger."""


class Leases:
    """Deliveries in flight. Thread-safe.

    A receiver reserves slots before it asks SQS, so that no more messages come than there is room
    for, and waits here, not in a sleep, for a settlement to make room.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[str, Delivery] = {}
        self._reserved = 0
        self._concurrency = 0
        self._receivers = 1

    def resize(self, concurrency: int) -> None:
        """Set how many tasks the pool runs at a time; the window is that and one batch more."""
        with self._changed:
            self._concurrency = concurrency
            self._changed.notify_all()

    def share_among(self, receivers: int) -> None:
        """Set how many receivers share the window, so that a busy queue leaves room for others."""
        with self._changed:
            self._receivers = max(receivers, 1)
            self._changed.notify_all()

    def reserve(self, stopping: threading.Event) -> int:
        """Wait until a receive is worth its call, and reserve 1 to 10 slots for it.

        Worth it: a full batch fits, or this receiver's share of the window, where several queues
        share it. Returns 0 once `stopping` is set and
        `wake` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: stopping.is_set() or self._is_worth_a_receive())
            if stopping.is_set():
                return 0
            slots = min(self._share, self._free)
            self._reserved += slots
            return slots

    def wake(self) -> None:
        """Let whoever waits in `reserve` look again."""
        with self._changed:
            self._changed.notify_all()

    def fill(self, slots: int, deliveries: list[Delivery]) -> None:
        """Give `slots` reserved ones back and hold the deliveries that came."""
        with self._changed:
            self._reserved -= slots
            self._held.update((delivery.tag, delivery) for delivery in deliveries)
            self._changed.notify_all()

    def take(self, tag: str) -> Delivery | None:
        """End a delivery and free its slot; None where it was ended before."""
        with self._changed:
            delivery = self._held.pop(tag, None)
            self._changed.notify_all()
            return delivery

    def get(self, tag: str) -> Delivery | None:
        """The delivery, still in flight; None where it was ended."""
        return self._held.get(tag)

    def tags(self) -> list[str]:
        """The tags of all deliveries in flight."""
        with self._changed:
            return list(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def _window(self) -> int:
        # One slot for each receiver at the least: all of them wait in a long poll most of the time.
        return self._concurrency + max(BATCH, self._receivers)

    @property
    def _share(self) -> int:
        return max(1, min(BATCH, self._window // self._receivers))

    @property
    def _free(self) -> int:
        # Without a window (a plain kombu consumer that set no prefetch) one batch at a time.
        return max(self._window - len(self._held) - self._reserved, 0)

    def _is_worth_a_receive(self) -> bool:
        # The window is a batch wider than the pool, so where that much is free the pool may idle
        # soon, and where it is not every slot of the pool is taken.
        return self._free >= self._share
