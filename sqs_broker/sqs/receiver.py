"""Threads that ask SQS for messages and outlive every fault of the asking.

kombu's own receive path has no timeout and dies of one HTTP error (kombu 5.7
asynchronous/aws/connection.py); these wait a little longer than the long poll for an answer, and
back off, for ever.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from itertools import count
from time import monotonic

from sqs_broker.machine import threads
from sqs_broker.options import Options
from sqs_broker.rules.backoff import half_jitter
from sqs_broker.rules.lease import Delivery
from sqs_broker.sqs.driver import CONNECT_TIMEOUT, Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.extension import OVER, REFUSED, extend
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Received

logger = logging.getLogger(__name__)

#: Seconds an answer may come later than the long poll ends.
ANSWER_MARGIN = 5

#: Seconds a further thread waits for messages: it is there because the queue is full.
HELPER_WAIT = 1

#: Seconds it waits for room in the window before it ends.
HELPER_PATIENCE = 1.0

#: Seconds: the ceiling of the first pause after a failure, doubled by each one that follows.
FIRST_PAUSE = 0.5

#: Seconds that a call may be late, with all its timeouts and its pause, before it hangs for good.
FAULT_MARGIN = 10

#: The part of a lease that a receive call may take without a doubt about what is left of it. A
#: third, and what an answer may be late: so polls of a third of a lease cost no further call.
MOST_DOUBT = 0.35

#: Seconds between two log lines about one kind of failure.
QUIET = 60.0

_tags = count(1)


class Receiver:
    """Polls one queue on threads of its own. They call `on_received` with each batch, and
    `on_missed` with each delivery whose lease was over when it came, and why."""

    def __init__(
        self,
        queue: str,
        options: Options,
        driver: Driver,
        leases: Leases,
        on_received: Callable[[list[Delivery]], None],
        on_missed: Callable[[Delivery, str], None] = lambda *_: None,
        *,
        clock: Callable[[], float] = monotonic,
        first_pause: float = FIRST_PAUSE,
        helper_patience: float = HELPER_PATIENCE,
    ) -> None:
        self._queue = queue
        self._sqs = Queue(options.queue(queue).url, driver)
        self._clock = clock
        self._first_pause = first_pause
        self._helper_patience = helper_patience
        self._wait = options.wait_time_seconds
        self._longest_pause = options.receive_pause_max
        self._most = options.max_receivers
        self._leases = leases
        self._on_received = on_received
        self._on_missed = on_missed
        self._stopping = threading.Event()
        self._failures = 0
        self._said_at: dict[str, float] = {}
        self._is_said = False
        self._name = f"sqs-receiver-{queue}"
        self._threads: list[threading.Thread] = []
        self._first: threading.Thread | None = None
        self._lock = threading.Lock()
        #: When each call that is open was made, by its thread.
        self._asked_at: dict[int, float] = {}
        self._longest = self._wait + ANSWER_MARGIN + CONNECT_TIMEOUT + self._longest_pause

    def start(self) -> None:
        """Start the first thread; it starts others while full batches keep coming.

        Raises NoThread.
        """
        with self._lock:
            self._first = threads.insist(self._run, self._name)
            self._threads = [self._first]

    @property
    def is_polling(self) -> bool:
        """Whether a call is open, or is backed off from."""
        return bool(self._asked_at)

    def fault(self) -> str | None:
        """Why nothing will be received from this queue any more; None where it works, or stops."""
        if self._stopping.is_set():
            return None
        if self._first is None or not self._first.is_alive():
            return f"the receiver of {self._queue} has ended"
        # A copy, in one step: threads add and remove theirs.
        asked_at = min(self._asked_at.copy().values(), default=None)
        if asked_at is None or self._clock() - asked_at <= self._longest + FAULT_MARGIN:
            return None
        return f"a receive call of {self._queue} is open for {self._clock() - asked_at:.0f} s"

    def join(self, timeout: float) -> None:
        """Wait for the threads to end, `timeout` seconds for all of them at the most."""
        with self._lock:
            running = list(self._threads)
        deadline = monotonic() + timeout
        for thread in running:
            thread.join(max(0.0, deadline - monotonic()))

    def stop(self) -> None:
        """Ask no more. A call under way ends by itself, within the long poll."""
        self._stopping.set()
        self._leases.wake()

    def _run(self) -> None:
        while slots := self._leases.reserve(self._stopping):
            if self.poll(slots, self._wait) == slots:
                self._get_help()

    def _get_help(self) -> None:
        """The queue is full: let another thread ask at the same time, if there is room for more."""
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if self._stopping.is_set() or len(self._threads) >= self._most:
                return
            slots = self._leases.try_reserve()
            if not slots:
                return
            name = f"{self._name}-{len(self._threads) + 1}"
            helper = threads.start(self._help, name, slots)
            if helper is None:
                self._leases.fill(slots, [])  # The next full batch asks for help again.
            else:
                self._threads.append(helper)

    def _help(self, slots: int) -> None:
        while slots and self.poll(slots, HELPER_WAIT) == slots:
            # It waits for room as the first one does, but not long: an idle worker has one thread.
            slots = self._leases.reserve(self._stopping, self._helper_patience)

    def poll(self, slots: int, wait: int) -> int:
        """Make one receive call of `wait` seconds, for slots that are reserved, and hand over what
        came; how many that was. Never raises for what goes wrong with the call."""
        received: list[Delivery] = []
        self._asked_at[threading.get_ident()] = self._clock()
        try:
            received = self._receive(slots, wait)
            self._recovered()
        except Exception as exc:
            # Broad on purpose: whatever goes wrong with one receive, the next one is due. No
            # message is held yet; SQS shows again what it may have handed out.
            self._outlive(exc)
        finally:
            self._asked_at.pop(threading.get_ident(), None)
            held = self._hold(slots, received)
        if held:
            self._hand_over(held)
        return len(received)

    def _hold(self, slots: int, received: Sequence[Delivery]) -> list[Delivery]:
        """Give the slots back, and hold what came: but for those whose lease is over by now."""
        until: dict[str, float] = {}
        try:
            until = self._ends(received)
        finally:
            held = [delivery for delivery in received if delivery.tag in until]
            self._leases.fill(slots, held, until)
        return held

    def _ends(self, received: Sequence[Delivery]) -> dict[str, float]:
        """When the lease of each ends, by its tag. Those that are over are said to be lost."""
        timeout = self._leases.visibility_timeout
        until = {delivery.tag: delivery.asked_at + timeout for delivery in received}
        why: dict[str, str] = {}
        # Nobody knows when in a long call SQS handed a message out: it does.
        if doubtful := [d for d in received if d.waited > timeout * MOST_DOUBT]:
            extension = extend(self._sqs, [(d, timeout) for d in doubtful], self._clock)
            until |= extension.until
            why = dict.fromkeys(extension.lost, REFUSED)
        now = self._clock()
        why = {tag: OVER for tag, end in until.items() if end <= now} | why
        for delivery in received:
            if delivery.tag in why:
                self._on_missed(delivery, why[delivery.tag])
                del until[delivery.tag]
        return until

    def _hand_over(self, received: list[Delivery]) -> None:
        try:
            self._on_received(received)
        except Exception:
            # Broad on purpose: without this thread nothing would be received any more. What is no
            # longer held comes again when SQS's visibility timeout is over.
            for delivery in received:
                self._leases.take_unstarted(delivery.tag)
            logger.exception(
                "Messages could not be handed over; SQS delivers them again.",
                extra={"event": "receive.broken", "queue": self._queue, "count": len(received)},
            )

    def _receive(self, slots: int, wait: int) -> list[Delivery]:
        asked_at = self._clock()
        messages = self._sqs.receive(slots, wait)
        received_at = self._clock()
        waited = received_at - asked_at
        return [delivery_of(message, self._queue, received_at, waited) for message in messages]

    def _outlive(self, exc: Exception) -> None:
        try:
            self._back_off(exc)
        except Exception:
            # Broad on purpose: an error that cannot even be told must not end the thread either.
            self._stopping.wait(self._first_pause)

    def _back_off(self, exc: Exception) -> None:
        self._failures += 1
        kind = SqsError.of(exc).code
        now = self._clock()
        if now - self._said_at.get(kind, -QUIET) >= QUIET:
            self._said_at[kind] = now
            self._is_said = True
            logger.warning(
                "Receiving from %s fails (%s); trying again until it works.",
                self._queue,
                kind,
                extra={"event": "receive.failed", "queue": self._queue, "error": kind},
            )
        self._stopping.wait(half_jitter(self._first_pause, self._failures, self._longest_pause))

    def _recovered(self) -> None:
        self._failures = 0
        # Said once for what was said: several threads poll, and a queue may fail every other call.
        if self._is_said:
            self._is_said = False
            logger.info(
                "Receiving from %s works again.",
                self._queue,
                extra={"event": "receive.recovered", "queue": self._queue},
            )


def delivery_of(message: Received, queue: str, received_at: float, waited: float = 0.0) -> Delivery:
    """The delivery that a received message is, which came at `received_at`, in monotonic seconds,
    after a call of `waited` seconds."""
    return Delivery(
        tag=str(next(_tags)),
        queue=queue,
        message_id=message.message_id,
        receipt_handle=message.receipt_handle,
        body=message.body,
        attributes=message.attributes,
        count=message.receives,
        enqueued_at=message.sent_at,
        received_at=received_at,
        waited=waited,
    )
