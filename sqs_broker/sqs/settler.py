"""Tells SQS the outcome of each delivery: deletes and visibility changes, ten a call, on a thread
of its own, so that neither the event loop nor a task ever waits for SQS.

A slot is freed when its outcome is handed over here; what SQS then refuses is tried again for as
long as the lease lasts, and logged when it is given up. SQS delivers such a message again.
"""

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqs_broker.limits import BATCH
from sqs_broker.machine import threads
from sqs_broker.options import Options
from sqs_broker.rules.lease import Lease
from sqs_broker.rules.outcomes import DeadLetter, Done, Outcome, Postponed, Released, Retry
from sqs_broker.sqs.calls import bare, error_code
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.settlement import Settlement, by_queue, told_visibility

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

logger = logging.getLogger(__name__)

#: Seconds a settlement waits for others to share its call.
LINGER = 0.02

#: The same while a call for others is under way.
LONGEST_LINGER = 0.1

#: Calls at a time: one alone would bound the worker at ten messages a round trip.
THREADS = 3

#: Seconds after which a thread is tried again that this machine had no room for.
GROW_PAUSE = 5.0

#: Seconds between two tries of what failed; the lease bounds how many there are.
RETRY_PAUSE = 1.0

#: Stands for an error code where the lease was over before SQS was told.
LEASE_OVER = "LeaseOver"

#: Error codes that no second try can change.
FINAL_CODES = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "InvalidParameterValue",
        "MessageNotInflight",
        "ReceiptHandleIsInvalid",
    }
)

Fault = Exception | str


class Settler:
    """The threads and their queue of work. `settle` may be called from any other thread."""

    def __init__(
        self, options: Options, client: "SQSClient", on_told: Callable[[int], None] = lambda _: None
    ) -> None:
        self._options = options
        self._client = client
        self.copies = Copies(options, client)
        self._lock = threading.Lock()
        #: There is more to tell, or it is time to stop.
        self._changed = threading.Condition(self._lock)
        #: There is less to tell: for whoever waits in `flush`.
        self._less = threading.Condition(self._lock)
        #: One thread at a time waits for a batch: to wake the others for it as well would take time
        #: from the event loop.
        self._gathering = threading.Lock()
        self._waiting: deque[Settlement] = deque()
        self._waiting_since = 0.0
        self._failed: list[Settlement] = []
        self._on_told = on_told
        self._at_work = 0
        self._stopping = False
        # Held, not inherited: Thread has private names of its own, `_delete` among them.
        self._threads: list[threading.Thread] = []
        self._grows_at = math.inf

    def start(self) -> None:
        """Start the threads. One is enough to go on with; raises NoThread where there is none."""
        self._threads = [threads.insist(self._run, "sqs-settler-0")]
        self._grow()

    def settle(
        self, lease: Lease, outcome: Outcome, task: str | None = None, id_: str | None = None
    ) -> None:
        """Tell SQS soon, and for as long as the lease lasts. Returns at once; never raises."""
        settlement = Settlement(lease.delivery, outcome, task, id_, lease.expires_at)
        with self._changed:
            self._waiting.append(settlement)
            if len(self._waiting) == 1:
                self._waiting_since = monotonic()
            # The first starts the linger of a batch and the tenth ends it; those between say
            # nothing new.
            if len(self._waiting) == 1 or len(self._waiting) % BATCH == 0:
                self._changed.notify()

    def flush(self, timeout: float) -> bool:
        """Wait until nothing is left to tell; False where `timeout` seconds were not enough."""
        with self._less:
            return self._less.wait_for(
                lambda: not (self._waiting or self._failed or self._at_work), timeout
            )

    def stop(self, timeout: float) -> None:
        """Tell what is left, then end the thread; give up after `timeout` seconds."""
        alive = any(thread.is_alive() for thread in self._threads)
        flushed = not alive or self.flush(timeout)
        if not flushed:
            logger.warning(
                "Stopped before SQS was told every outcome; it delivers those messages again.",
                extra={"event": "settle.unfinished", "count": len(self._waiting)},
            )
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def _run(self) -> None:
        while batch := self._next_batch():
            self._work(batch)
            if len(self._threads) < THREADS and self._grows_at <= monotonic():
                self._grow()

    def _grow(self) -> None:
        """Start the threads that are still missing; what there is no room for is tried again."""
        with self._lock:
            self._grows_at = monotonic() + GROW_PAUSE
            while len(self._threads) < THREADS and not self._stopping:
                thread = threads.start(self._run, f"sqs-settler-{len(self._threads)}")
                if thread is None:
                    return
                self._threads.append(thread)

    def _work(self, batch: Sequence[Settlement]) -> None:
        try:
            self._tell(batch)
        except Exception as exc:
            # Broad on purpose: without this thread no message would ever be settled again.
            logger.exception(
                "Telling SQS outcomes failed; trying again.", extra={"event": "settle.broken"}
            )
            self._failed_all(batch, exc)
        finally:
            self._on_told(len(batch))
            with self._less:
                self._at_work -= 1
                self._less.notify_all()

    def _next_batch(self) -> list[Settlement]:
        with self._gathering, self._changed:
            while not self._stopping:
                self._requeue_failed()
                if not self._waiting:
                    self._changed.wait(RETRY_PAUSE if self._failed else None)
                elif (left := self._linger_left()) > 0:
                    self._changed.wait_for(self._is_batch_ready, left)
                else:
                    return self._take_batch()
        return []

    def _linger_left(self) -> float:
        """Seconds the waiting settlements may still wait for others."""
        if self._is_batch_ready():
            return 0.0
        # While a call is under way there is time to fill the next one.
        linger = LONGEST_LINGER if self._at_work else LINGER
        return linger - (monotonic() - self._waiting_since)

    def _take_batch(self) -> list[Settlement]:
        self._at_work += 1
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._waiting_since = monotonic()
        return batch

    def _is_batch_ready(self) -> bool:
        return len(self._waiting) >= BATCH or self._stopping

    def _requeue_failed(self) -> None:
        now = monotonic()
        due = [settlement for settlement in self._failed if settlement.not_before <= now]
        self._failed = [settlement for settlement in self._failed if settlement.not_before > now]
        if due and not self._waiting:
            self._waiting_since = now
        self._waiting.extend(due)

    def _tell(self, batch: Sequence[Settlement]) -> None:
        sent = [s for s in batch if self._has_lease(s) and self._send_copy(s)]
        for queue, settlements in by_queue(sent):
            url = self._options.queue(queue).url
            for tell, outcomes in (
                (self._delete, Done | DeadLetter | Postponed),
                (self._change_visibility, Retry | Released),
            ):
                # Looked at again: each call before this one took its time.
                told = [s for s in settlements if isinstance(s.outcome, outcomes)]
                if told := [s for s in told if self._has_lease(s)]:
                    tell(url, told)

    def _has_lease(self, settlement: Settlement) -> bool:
        """Whether the lease lasts; where it does not, the message may be another worker's."""
        if settlement.expires_at > monotonic():
            return True
        self._give_up(settlement, LEASE_OVER)
        return False

    def _send_copy(self, settlement: Settlement) -> bool:
        """Send what must be sent before the message may be deleted; True where that is done."""
        delivery, outcome = settlement.delivery, settlement.outcome
        if not isinstance(outcome, DeadLetter | Postponed):
            return True
        try:
            self.copies.send(delivery, outcome, settlement.task, settlement.id)
        except Exception as exc:
            # Broad on purpose, here and below: half an answer is no error of botocore's own.
            self._failed_once(settlement, exc)
            return False
        return True

    def _delete(self, url: str, settlements: Sequence[Settlement]) -> None:
        entries = [_entry(n, s) for n, s in enumerate(settlements)]
        self._call(self._client.delete_message_batch, url, entries, settlements)

    def _change_visibility(self, url: str, settlements: Sequence[Settlement]) -> None:
        entries = [
            _entry(n, s) | {"VisibilityTimeout": told_visibility(s)}
            for n, s in enumerate(settlements)
        ]
        self._call(self._client.change_message_visibility_batch, url, entries, settlements)

    def _call(
        self,
        call: Callable[..., Any],
        url: str,
        entries: Sequence[dict[str, Any]],
        settlements: Sequence[Settlement],
    ) -> None:
        try:
            answer = call(QueueUrl=url, Entries=entries)
        except Exception as exc:
            self._failed_all(settlements, exc)
        else:
            self._failed_some(settlements, answer.get("Failed", ()))

    def _failed_all(self, settlements: Sequence[Settlement], exc: Exception) -> None:
        for settlement in settlements:
            self._failed_once(settlement, exc)

    def _failed_some(self, settlements: Sequence[Settlement], failed: Iterable[Any]) -> None:
        for entry in failed:
            self._failed_once(settlements[int(entry["Id"])], entry["Code"])

    def _failed_once(self, settlement: Settlement, fault: Fault) -> None:
        code = bare(fault) if isinstance(fault, str) else error_code(fault)
        now = monotonic()
        if code in FINAL_CODES or now + RETRY_PAUSE >= settlement.expires_at:
            self._give_up(settlement, code)
            return
        # It is not told yet, whatever the end of this batch says.
        self._on_told(-1)
        with self._changed:
            self._failed.append(replace(settlement, not_before=now + RETRY_PAUSE))
            self._changed.notify()

    def _give_up(self, settlement: Settlement, code: str) -> None:
        logger.error(
            "SQS was not told the outcome of a message, so it will deliver it again.",
            extra={
                "event": "settle.failed",
                "outcome": settlement.outcome.name,
                "error": code,
                "sqs_message_id": settlement.delivery.message_id,
                "queue": settlement.delivery.queue,
            },
        )


def _entry(number: int, settlement: Settlement) -> dict[str, Any]:
    return {"Id": str(number), "ReceiptHandle": settlement.delivery.receipt_handle}
