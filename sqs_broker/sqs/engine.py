"""The threads of one channel: receivers receive messages, the heartbeat extends their leases, the
settler reports their outcomes to SQS.
"""

from collections.abc import Callable, Sequence
from time import monotonic

from sqs_broker.errors import NoThread
from sqs_broker.options import Options
from sqs_broker.rules.attempts import AttemptStore
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.lease import Delivery, Lease
from sqs_broker.rules.outcomes import Outcome
from sqs_broker.sqs.copies import Copies
from sqs_broker.sqs.driver import CONNECT_TIMEOUT, SECONDS, Driver
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.heartbeat import BEATS_PER_LEASE, Heartbeat
from sqs_broker.sqs.in_flight import InFlight
from sqs_broker.sqs.leases import Leases
from sqs_broker.sqs.receiver import ANSWER_MARGIN, Receiver
from sqs_broker.sqs.settler import Settled, Settler
from sqs_broker.sqs.watched import OnCalled, Watched

#: Seconds that a stop waits for the last reports to SQS.
FLUSH_TIMEOUT = 10

#: Seconds that a forced stop waits for an open long poll, whose answer may already be on its way.
LAST_POLL = 1


class Engine:
    """Its constructor starts the heartbeat and the settler. Each thread has its own driver.

    These threads call the callbacks: `on_received` with the deliveries of a receive call;
    `on_missed` with a delivery whose lease was over when it arrived; `on_lost` with a lease that
    was lost; `on_waited` with the lease of a message that has reached its longest wait; `on_hung`
    with the lease of a task that runs beyond its hard time limit; `on_beat` after each heartbeat;
    `on_settled` with the settlements that are over; `on_polled` with each answer to a receive call,
    as Receiver does; `on_called` with each call to SQS, as Watched does.
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
        on_hung: Callable[[Lease], None],
        on_beat: Callable[[], None],
        on_settled: Callable[[Sequence[Settled]], None],
        on_polled: Callable[[str, int, int], None] = lambda *_: None,
        on_called: OnCalled = lambda *_: None,
        attempts: AttemptStore | None = None,
        in_flight: InFlight | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Raises NoThread. Then no thread runs."""
        self._options = options
        self._leases = leases
        self._on_received = on_received
        self._on_missed = on_missed
        self._on_polled = on_polled
        self._on_called = on_called
        self._attempts = attempts
        self._in_flight = in_flight
        self._clock = clock
        self._receivers: dict[str, Receiver] = {}
        #: The driver of each queue's receivers. A queue that is received from again uses the same:
        #: a client of boto3 takes 8 MiB, and a tenth of a second to create.
        self._drivers: dict[str, Driver] = {}
        #: Stopped receivers. Their last call may still return messages.
        self._leaving: list[Receiver] = []
        self._poll_patience: float = options.wait_time_seconds + ANSWER_MARGIN
        self.settler = Settler(
            options,
            self._driver(),
            on_settled,
            leases.await_extensions,
            attempts=attempts,
            in_flight=in_flight,
            clock=clock,
        )
        # One try, which ends before the next beat if leases are not very short.
        lease = options.policy.visibility_timeout
        patience = max(CONNECT_TIMEOUT, min(SECONDS, lease / BEATS_PER_LEASE))
        self.heartbeat = Heartbeat(
            options,
            self._driver(tries=1, seconds=patience),
            leases,
            on_lost,
            on_beat,
            on_waited,
            on_hung,
            clock=clock,
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
        """One for each queue that this channel receives from."""
        return tuple(self._receivers.values())

    def receives(self, queue: str) -> bool:
        """Whether this channel receives from a queue."""
        return queue in self._receivers

    def receive(self, queue: str) -> None:
        """Receive from a configured queue. Raises NoThread. Then nothing is received from it."""
        if queue in self._receivers:
            return
        receiver = Receiver(
            queue,
            self._options,
            self._receiving_driver(queue),
            self._leases,
            self._on_received,
            self._on_missed,
            self._on_polled,
            attempts=self._attempts,
            in_flight=self._in_flight,
            clock=self._clock,
        )
        # Before it starts, because its first messages may arrive at once.
        self._receivers[queue] = receiver
        self._leases.share_among(len(self._receivers))
        try:
            receiver.start()
        except NoThread:
            self._receivers.pop(queue)
            self._leases.share_among(len(self._receivers))
            raise

    def leave(self, queue: str) -> None:
        """Stop receiving from a queue. An open call may still return messages."""
        if receiver := self._receivers.pop(queue, None):
            receiver.stop()
            # SQS may answer its open call with a message, so a close of the channel waits for it.
            self._leaving = [each for each in self._leaving if not each.has_ended]
            self._leaving.append(receiver)
            self._leases.share_among(len(self._receivers))

    def leave_all(self) -> None:
        """Stop receiving from every queue."""
        while self._receivers:
            receiver = self._receivers.popitem()[1]
            receiver.stop()
            self._leaving.append(receiver)

    def poll_left(self, queue: str) -> float | None:
        """Seconds until all open long polls of a queue are over; None if no call is open."""
        receivers = [*self._receivers.values(), *self._leaving]
        left = [receiver.poll_left() for receiver in receivers if receiver.queue == queue]
        return max((seconds for seconds in left if seconds is not None), default=None)

    def give_up_polls(self) -> None:
        """From now on, wait only for answers that are on their way, not for open calls."""
        self._poll_patience = LAST_POLL

    def await_polls(self) -> None:
        """Wait for open calls: the time of a long poll, or less after `give_up_polls`."""
        deadline = monotonic() + self._poll_patience
        for receiver in self._leaving:
            receiver.join(max(0.0, deadline - monotonic()))

    # Settling

    @property
    def copies(self) -> Copies:
        """The record of copies that were sent."""
        return self.settler.copies

    def settle_all(self, ended: Sequence[tuple[Lease, Facts, Outcome]]) -> None:
        """Report outcomes to SQS soon. Returns at once; never raises."""
        self._leases.count_unreported(len(ended))
        self.settler.settle_all(ended)

    def flush(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Wait until every outcome is reported; False if `timeout` seconds are not enough."""
        return self.settler.flush(timeout)

    def stop(self) -> None:
        """Report the remaining outcomes, and end the threads."""
        self.settler.stop(FLUSH_TIMEOUT)
        self.heartbeat.stop(FLUSH_TIMEOUT)

    def _receiving_driver(self, queue: str) -> Driver:
        if queue not in self._drivers:
            # One try, because the receiver itself tries again, and logs the failure.
            patience = self._options.wait_time_seconds + ANSWER_MARGIN
            self._drivers[queue] = self._driver(
                read_timeout=patience, tries=1, seconds=CONNECT_TIMEOUT + ANSWER_MARGIN
            )
        return self._drivers[queue]

    def _driver(self, **how: float) -> Driver:
        made = driver_for(self._options, **how)  # type: ignore[arg-type]  # passed by name
        driver = Watched(made, self._on_called)
        # Not at the first call: an error in the options must be raised here.
        driver.open()
        return driver
