"""Threads that receive messages from SQS. No error of a receive call ends them.

kombu's own receive path has no timeout, and ends at the first HTTP error (kombu 5.7
asynchronous/aws/connection.py). These threads wait a little longer than the long poll for an
answer. After an error they back off and try again, without end.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import count
from time import monotonic

from sqs_broker.machine import threads
from sqs_broker.machine.textless import textless
from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore, Record
from sqs_broker.rules.backoff import half_jitter
from sqs_broker.rules.lease import Delivery, age_of
from sqs_broker.sqs.driver import CONNECT_TIMEOUT, Driver
from sqs_broker.sqs.errors import HANGING, SqsError
from sqs_broker.sqs.extension import OVER, REFUSED, extend
from sqs_broker.sqs.in_flight import InFlight
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.records import records_of
from sqs_broker.sqs.requests import Received

logger = logging.getLogger(__name__)

#: Seconds that an answer may arrive after the end of the long poll.
ANSWER_MARGIN = 5

#: Seconds of the long poll of a further thread. It is short, because that thread runs only while
#: messages come.
HELPER_WAIT = 1

#: Threads while messages come, but not enough to fill an answer. If there were only one, a message
#: that reaches SQS between two of its calls would wait for the second of them.
THREADS_IN_A_FLOW = 2

#: Seconds that a further thread waits for room in the window before it ends.
HELPER_PATIENCE = 1.0

#: If a full answer comes within so many seconds, the queue has more messages.
QUICK = 0.25

#: The longest pause after the first failure, in seconds. It doubles with each further failure.
FIRST_PAUSE = 0.5

#: Seconds after all timeouts and the pause of a call. If it is still open then, it hangs.
FAULT_MARGIN = 10

#: The part of the visibility timeout that a receive call may last. If it lasts longer, too little
#: of the lease may be left, so the lease is extended. The part is a third, with a margin for a late
#: answer. So long polls of a third of the visibility timeout cost no further call.
MOST_DOUBT = 0.35

#: Seconds between two log lines about one kind of failure.
QUIET = 60.0

_tags = count(1)


class Receiver:
    """Polls one queue on its own threads. They call `on_received` with each batch, `on_missed` with
    each delivery whose lease was over when it arrived, and the reason, and `on_polled` after each
    call that SQS answered, with the queue, the number of messages asked for, and that returned.

    `attempts` is read for messages that were delivered before. `in_flight` learns that SQS refuses
    because too many messages are in flight.
    """

    def __init__(
        self,
        queue: str,
        options: Options,
        driver: Driver,
        leases: Leases,
        on_received: Callable[[list[Delivery]], None],
        on_missed: Callable[[Delivery, str], None] = lambda *_: None,
        on_polled: Callable[[str, int, int], None] = lambda *_: None,
        *,
        attempts: AttemptStore | None = None,
        in_flight: InFlight | None = None,
        clock: Callable[[], float] = monotonic,
        first_pause: float = FIRST_PAUSE,
        helper_patience: float = HELPER_PATIENCE,
    ) -> None:
        self.queue = queue
        self._attempts = attempts
        self._in_flight = in_flight
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
        self._on_polled = on_polled
        self._stopping = threading.Event()
        self._failures = 0
        self._logged_at: dict[str, float] = {}
        self._is_failure_logged = False
        #: Whether the driver makes no more calls, because too many hang.
        self._hangs = False
        self._name = f"sqs-receiver-{queue}"
        #: By their number. The first has 1.
        self._threads: dict[int, threading.Thread] = {}
        self._lock = threading.Lock()
        #: When each open call began, by its thread.
        self._asked_at: dict[int, float] = {}
        #: When the long poll of each open call ends, by its thread.
        self._ends_at: dict[int, float] = {}
        self._longest = self._wait + ANSWER_MARGIN + CONNECT_TIMEOUT + self._longest_pause

    def start(self) -> None:
        """Start the first thread. It starts a second one while it receives messages, and more while
        it receives full batches.

        Raises NoThread.
        """
        with self._lock:
            self._threads = {1: threads.insist(self._run, self._name)}

    @property
    def is_polling(self) -> bool:
        """Whether a call is open, or a thread backs off after one."""
        return bool(self._asked_at)

    def poll_left(self) -> float | None:
        """Seconds until the long polls of all open calls are over; None if no call is open. In this
        time SQS may return a message that this worker releases to this worker again."""
        last = max(self._ends_at.copy().values(), default=None)
        return None if last is None else max(last - self._clock(), 0.0)

    @property
    def has_ended(self) -> bool:
        """Whether no thread of it runs."""
        with self._lock:
            return not any(thread.is_alive() for thread in self._threads.values())

    def fault(self) -> str | None:
        """Why nothing will be received from this queue any more; None if it works or stops."""
        if self._stopping.is_set():
            return None
        first = self._threads.get(1)
        if first is None or not first.is_alive():
            return f"the receiver of {self.queue} has ended"
        if self._hangs:
            return f"too many receive calls of {self.queue} hang"
        # A copy in one step, because other threads add and remove items.
        asked_at = min(self._asked_at.copy().values(), default=None)
        if asked_at is None or self._clock() - asked_at <= self._longest + FAULT_MARGIN:
            return None
        return f"a receive call of {self.queue} is open for {self._clock() - asked_at:.0f} s"

    def join(self, timeout: float) -> None:
        """Wait for the threads to end: at most `timeout` seconds for all of them together."""
        with self._lock:
            running = list(self._threads.values())
        deadline = monotonic() + timeout
        for thread in running:
            thread.join(max(0.0, deadline - monotonic()))

    def stop(self) -> None:
        """Make no more calls. An open call ends by itself, at the end of the long poll."""
        self._stopping.set()
        self._leases.wake()

    def _run(self) -> None:
        is_busy, wanted = False, 1
        while slots := self._leases.reserve(self._stopping, is_busy=is_busy):
            # Only now, so that this thread has its slots before another one reserves some.
            self._get_help(wanted)
            asked_at = self._clock()
            # What a busy queue has reserved is missing for others if it is empty by now.
            wait = min(self._wait, HELPER_WAIT) if is_busy else self._wait
            received = self.poll(slots, wait, is_busy=is_busy)
            is_shared = self._leases.is_shared
            # A share can be one message, so a full answer alone does not mean a full queue.
            is_slow = is_shared and self._clock() - asked_at >= QUICK
            wanted = 1 if is_slow else self._wanted(slots, received)
            is_busy = is_shared and received == slots and not is_slow

    def _wanted(self, slots: int, received: int) -> int:
        """How many threads this queue needs after an answer with so many messages of `slots`."""
        if received == slots:
            return self._most
        # If queues share the window, two polls of one would take room from the polls of another.
        is_flow = received > 0 and not self._leases.is_shared
        return min(THREADS_IN_A_FLOW, self._most) if is_flow else 1

    def _get_help(self, wanted: int) -> None:
        """If fewer threads than that receive, start another one, if there is room for more."""
        with self._lock:
            number = next((n for n in range(2, wanted + 1) if not self._is_alive(n)), None)
            if self._stopping.is_set() or number is None:
                return
            is_busy = self._leases.is_shared
            slots = self._leases.try_reserve(is_busy=is_busy)
            if not slots:
                return
            helper = threads.start(self._help, f"{self._name}-{number}", number, slots, is_busy)
            if helper is None:
                # The next answer that needs one asks for it again.
                self._leases.fill(slots, [], is_busy=is_busy)
            else:
                self._threads[number] = helper

    def _is_alive(self, number: int) -> bool:
        return number in self._threads and self._threads[number].is_alive()

    def _help(self, number: int, slots: int, is_busy: bool) -> None:
        """Receive while each answer needs so many threads."""
        while slots and number <= self._wanted(
            slots, self.poll(slots, HELPER_WAIT, is_busy=is_busy)
        ):
            # Like the first thread it waits for room, but not long: an idle worker has one thread.
            slots = self._leases.reserve(self._stopping, self._helper_patience, is_busy=is_busy)

    def poll(self, slots: int, wait: int, *, is_busy: bool = False) -> int:
        """Make one receive call of `wait` seconds for reserved slots, and hand over the messages.
        Returns their number. Never raises if the call fails."""
        received: list[Delivery] = []
        thread = threading.get_ident()
        self._asked_at[thread] = self._clock()
        self._ends_at[thread] = self._clock() + wait
        try:
            # Only now: whoever stops this receiver sees the open poll, or this sees the stop.
            if not self._stopping.is_set():
                received = self._receive(slots, wait)
                self._recovered()
        except Exception as exc:
            # Broad on purpose: after any error, this thread must receive again. It holds no message
            # yet. If SQS has handed out messages, it delivers them again.
            self._wait_after(exc)
        finally:
            self._asked_at.pop(thread, None)
            self._ends_at.pop(thread, None)
            held = self._hold(slots, received, is_busy)
        if held:
            self._hand_over(held)
        return len(received)

    def _hold(self, slots: int, received: Sequence[Delivery], is_busy: bool) -> list[Delivery]:
        """Return the slots, and hold the deliveries whose lease is not over yet."""
        until: dict[str, float] = {}
        try:
            until = self._ends(received)
        finally:
            held = [delivery for delivery in received if delivery.tag in until]
            self._leases.fill(slots, held, until, is_busy=is_busy)
        return held

    def _ends(self, received: Sequence[Delivery]) -> dict[str, float]:
        """The end of each lease, by tag. Leases that are over are reported with `on_missed`."""
        timeout = self._leases.visibility_timeout
        until = {delivery.tag: delivery.asked_at + timeout for delivery in received}
        why: dict[str, str] = {}
        # It is not known when, in a long call, SQS handed out a message. Only SQS can tell.
        if long_waited := [d for d in received if d.waited > timeout * MOST_DOUBT]:
            extension = extend(self._sqs, [(d, timeout) for d in long_waited], self._clock)
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
        except Exception as exc:
            # Broad on purpose: if this thread ended, nothing would be received any more. SQS
            # delivers these messages again after the visibility timeout.
            for delivery in received:
                self._leases.take_unstarted(delivery.tag)
            logger.error(
                "Could not hand over messages; SQS delivers them again.",
                exc_info=textless(exc),
                extra={"event": "receive.broken", "queue": self.queue, "count": len(received)},
            )

    def _receive(self, slots: int, wait: int) -> list[Delivery]:
        asked_at = self._clock()
        on_late = partial(self._release_late, asked_at)
        messages = self._sqs.receive(slots, wait, on_late=on_late)
        received_at = self._clock()
        self._on_polled(self.queue, slots, len(messages))
        waited = received_at - asked_at
        records = records_of([(m.message_id, m.receives) for m in messages], self._attempts)
        return [
            delivery_of(message, self.queue, received_at, waited, records.get(message.message_id))
            for message in messages
        ]

    def _release_late(self, asked_at: float, messages: Sequence[Received]) -> None:
        """Release the messages of a call that was given up. Nothing here holds them."""
        # Once the earliest possible end of these leases is over, others may hold the messages.
        is_over = self._clock() >= asked_at + self._leases.visibility_timeout
        if is_over or not messages:
            return
        self._sqs.change_visibility([(message.receipt_handle, 0) for message in messages])
        logger.warning(
            "A receive call of %s returned %d messages after its deadline; they are released.",
            self.queue,
            len(messages),
            extra={"event": "receive.late", "queue": self.queue, "count": len(messages)},
        )

    def _wait_after(self, exc: Exception) -> None:
        try:
            self._back_off(exc)
        except Exception:
            # Broad on purpose: an error that cannot be logged must not end the thread either.
            self._stopping.wait(self._first_pause)

    def _back_off(self, exc: Exception) -> None:
        self._failures += 1
        error = SqsError.of(exc)
        kind = error.code
        self._hangs = kind == HANGING
        if error.is_over_limit and self._in_flight:
            self._in_flight.refused(self.queue)
        now = self._clock()
        if now - self._logged_at.get(kind, -QUIET) >= QUIET:
            self._logged_at[kind] = now
            self._is_failure_logged = True
            logger.warning(
                "Receiving from %s fails (%s); trying again until it works.",
                self.queue,
                kind,
                extra={"event": "receive.failed", "queue": self.queue, "error": kind},
            )
        self._stopping.wait(half_jitter(self._first_pause, self._failures, self._longest_pause))

    def _recovered(self) -> None:
        self._failures = 0
        self._hangs = False
        # One log line for the failures that were logged: several threads poll, and a queue may fail
        # every second call.
        if self._is_failure_logged:
            self._is_failure_logged = False
            logger.info(
                "Receiving from %s works again.",
                self.queue,
                extra={"event": "receive.recovered", "queue": self.queue},
            )


def delivery_of(
    message: Received,
    queue: str,
    received_at: float,
    waited: float = 0.0,
    record: Record | None = None,
) -> Delivery:
    """The delivery of a message that arrived at `received_at`, in monotonic seconds, after a call
    of `waited` seconds."""
    first = message.first_received_at
    answered = message.answered_at or datetime.now(UTC)
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
        record=record,
        first_received_at=first,
        age=age_of(message.attributes, first, answered.timestamp()),
        fair_group=message.group,
        trace_header=message.trace_header,
    )
