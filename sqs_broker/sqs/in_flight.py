"""Watches how many messages of a queue are in flight: received, and neither deleted nor visible.

SQS allows 120,000. Beyond that it returns no message: to a short poll with the error OverLimit, to
a long poll without an error. A retry waits as a message in flight, so many failures can fill this
limit. A message that is sent with a delay is not in flight.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html
"""

import logging
import threading
from collections.abc import Callable
from math import inf
from time import monotonic

from sqs_broker.limits import MOST_IN_FLIGHT
from sqs_broker.sqs.queue import NOT_VISIBLE, Queue

logger = logging.getLogger(__name__)

#: Seconds between two looks at a queue.
LOOK_EVERY = 60.0


class InFlight:
    """Which queues are crowded: have at least `threshold` messages in flight. Thread-safe.

    A queue is looked at only while its messages are retried, and at most once in a minute.
    """

    def __init__(self, threshold: int, clock: Callable[[], float] = monotonic) -> None:
        self._threshold = threshold
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at: dict[str, float] = {}
        self._crowded: set[str] = set()

    def is_crowded(self, queue: str) -> bool:
        """Whether the queue with this name was crowded when it was last looked at."""
        return queue in self._crowded

    def look(self, name: str, queue: Queue) -> None:
        """Ask SQS how many messages are in flight, unless that is known. Never raises: if SQS does
        not say, nothing changes."""
        with self._lock:
            if self._clock() - self._looked_at.get(name, -inf) < LOOK_EVERY:
                return
            self._looked_at[name] = self._clock()
        try:
            count = int(queue.attributes(NOT_VISIBLE).values[NOT_VISIBLE])
        except Exception:
            # Broad on purpose: a server may lack the attribute, and a worker the permission.
            return
        self._note(name, count >= self._threshold, count)

    def refused(self, name: str) -> None:
        """SQS returned no message because too many are in flight."""
        with self._lock:
            self._looked_at[name] = self._clock()
        self._note(name, True, MOST_IN_FLIGHT)

    def _note(self, name: str, is_crowded: bool, count: int) -> None:
        with self._lock:
            was_crowded = name in self._crowded
            (self._crowded.add if is_crowded else self._crowded.discard)(name)
        if is_crowded and not was_crowded:
            logger.warning(
                "%s messages of %s are in flight. At %s SQS returns no further message. Retries "
                "now wait as delayed copies.",
                count,
                name,
                MOST_IN_FLIGHT,
                extra={"event": "in_flight.high", "queue": name, "count": count},
            )
        elif was_crowded and not is_crowded:
            logger.info(
                "%s messages of %s are in flight. Retries wait as hidden messages again.",
                count,
                name,
                extra={"event": "in_flight.normal", "queue": name, "count": count},
            )
