"""The threads of one channel: receivers bring deliveries, the heartbeat keeps their leases, the
settler reports their outcomes.
"""

from collections.abc import Callable, Sequence
from time import monotonic

from sqs_broker.errors import NoThread
from sqs_broker.options import Options
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import Outcome
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.driver import Driver, driver_for
from sqs_broker.sqs.heartbeat import Heartbeat
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.receiver import ANSWER_MARGIN, Receiver
from sqs_broker.sqs.settler import Settled, Settler

#: Seconds that a stop waits until SQS has the last outcomes.
FLUSH_TIMEOUT = 10

#: Seconds that a forced stop gives an open long poll: its answer may be on its way already.
LAST_POLL = 1


class Engine:
    """Made in one step, with its heartbeat and its settler at work. Each has a client of its own.

    The callbacks run on these threads: `on_received` with what a receive call brought, `on_missed`
    with a delivery whose lease was over when it came, `on_lost` with a lease that was lost, and
    `on_waited` with one whose message has waited here for as long as it may, `on_beat` now and
    then, and `on_settled` with the settlements that are over.
    """

    def __init__(
        self,
        options: Options,
        leases: Leases,
        *,
        on_received: Callable[[list[Delivery]], None],
        on_missed: Callable[[Delivery, str], None],
        on_lost: Callable[[Lease, str], None],
        on_waited: Callable[[Lease], None],
        on_beat: Callable[[], None],
        on_settled: Callable[[Sequence[Settled]], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Raises NoThread; then nothing runs."""
        self._options = options
        self._leases = leases
        self._on_received = on_received
        self._on_missed = on_missed
        self._clock = clock
        self._receivers: dict[str, Receiver] = {}
        #: Receivers that were stopped, whose last call may still bring messages.
        self._leaving: list[Receiver] = []
        self._poll_patience: float = options.wait_time_seconds + ANSWER_MARGIN
        self.settler = Settler(options, self._driver(), on_settled, clock=clock)
        self.heartbeat = Heartbeat(
            options, self._driver(tries=1), leases, on_lost, on_beat, on_waited, clock=clock
        )
        self.settler.start()
        try:
            self.heartbeat.start()
        except NoThread:
            self.settler.stop(FLUSH_TIMEOUT)
            raise

    # Receiving

    @property
    def receivers(self) -> tuple[Receiver, ...]:
        """One for each queue that is received from."""
        return tuple(self._receivers.values())

    def receives(self, queue: str) -> bool:
        """Whether a queue is received from."""
        return queue in self._receivers

    def receive(self, queue: str) -> None:
        """Receive from a configured queue. Raises NoThread; then it is not received from."""
        if queue in self._receivers:
            return
        # One try: the receiver itself tries again, and logs it.
        driver = self._driver(read_timeout=self._options.wait_time_seconds + ANSWER_MARGIN, tries=1)
        receiver = Receiver(
            queue,
            self._options,
            driver,
            self._leases,
            self._on_received,
            self._on_missed,
            clock=self._clock,
        )
        # Known before it starts: its first messages may come at once.
        self._receivers[queue] = receiver
        self._leases.share_among(len(self._receivers))
        try:
            receiver.start()
        except NoThread:
            self._receivers.pop(queue)
            self._leases.share_among(len(self._receivers))
            raise

    def leave(self, queue: str) -> None:
        """Receive no more from a queue. An open call may still bring messages."""
        if receiver := self._receivers.pop(queue, None):
            receiver.stop()
            # Its open call is awaited when the channel closes: SQS may answer it with a message.
            self._leaving.append(receiver)
            self._leases.share_among(len(self._receivers))

    def leave_all(self) -> None:
        """Receive no more from any queue."""
        while self._receivers:
            receiver = self._receivers.popitem()[1]
            receiver.stop()
            self._leaving.append(receiver)

    def give_up_polls(self) -> None:
        """Wait no longer for open calls, but for answers that are on their way."""
        self._poll_patience = LAST_POLL

    def await_polls(self) -> None:
        """Wait for the open calls to end: a long poll's time, or less once they are given up."""
        deadline = monotonic() + self._poll_patience
        for receiver in self._leaving:
            receiver.join(max(0.0, deadline - monotonic()))

    # Settling

    @property
    def copies(self) -> Copies:
        """The copies that were sent."""
        return self.settler.copies

    def settle(self, lease: Lease, facts: Facts, outcome: Outcome) -> None:
        """Report an outcome to SQS soon. Returns at once; never raises."""
        self._leases.count_unreported(1)
        self.settler.settle(lease, facts, outcome)

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until SQS has every outcome; False if `timeout` seconds were too few."""
        return self.settler.flush(timeout)

    def stop(self) -> None:
        """Report what is left, and end the threads."""
        self.settler.stop(FLUSH_TIMEOUT)
        self.heartbeat.stop(FLUSH_TIMEOUT)

    def _driver(self, **how: float) -> Driver:
        driver = driver_for(self._options, **how)  # type: ignore[arg-type]  # each by its name
        # Here and not at the first call: what the options lack is said where they are used.
        driver.open()
        return driver
