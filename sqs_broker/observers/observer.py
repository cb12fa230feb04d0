"""The base class of observers, and the group of all observers of a process.

`broker_transport_options["observers"]` lists a project's own observers; the log is always one.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from time import monotonic
from typing import Any

from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Happened, Outcome

logger = logging.getLogger(__name__)


class Observer:
    """Is called for each step of a message. A subclass overrides the methods that it needs.

    The methods are called in the main process, on several threads; for one delivery, in the order
    of this class. They must return at once, because each message waits for them. If one raises,
    that is logged, at most once a minute, and has no other effect.
    """

    def received(self, message: Facts) -> None:
        """A message that may run was received. For any other, only `ended` is called."""

    def started(self, message: Facts) -> None:
        """A process or thread of the pool runs the message's task now."""

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        """The delivery ended: what happened, and the outcome, which is sent to SQS next."""

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        """SQS accepted the outcome, and `error` is None. Otherwise the outcome will not be sent
        because of `error`, and SQS delivers the message again."""

    def lost(self, message: Facts, why: str) -> None:
        """The message's lease was lost: no outcome is sent, and SQS delivers the message again."""

    def published(self, queue: str, count: int) -> None:
        """SQS accepted `count` new messages for a queue, given by its configured name."""

    def polled(self, queue: str, asked: int, count: int) -> None:
        """SQS answered a receive call for at most `asked` messages with `count` of them."""

    def called(self, action: str, queue: str, seconds: float, error: str | None) -> None:
        """A call to SQS is over after `seconds`, with the code of its error. `queue` is the name in
        its URL. A worker's calls alone: those that send new messages are left out."""

    def paused(self, reasons: frozenset[str]) -> None:
        """Receiving is paused for these reasons. If there are none, receiving resumes. If only a
        queue is paused, the reason begins with its name and `: `."""

    def redriven(self, messages: Sequence[Facts], began_at: datetime) -> None:
        """Up to ten dead letters were sent back to their queue. `began_at`: when the send began; a
        worker may have run them since. It is called in the process of the command, where nothing
        else is called, and may take seconds."""


class Together(Observer):
    """An observer that can hear of one or more messages at once, in less time than by one call for
    each. Only for this broker's own."""

    def together(self, what: str, each: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        """Hear of these steps, which are calls of the method `what`. Return those that are left,
        and that the method is called for."""
        return each


#: The methods of the base class, which do nothing, by their names.
_NOTHING = {name: method for name, method in vars(Observer).items() if not name.startswith("_")}


class Observers(Observer):
    """All observers of a process, called one after the other, also if one of them fails."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._methods: dict[str, tuple[tuple[Observer, Callable[..., None]], ...]] = {}
        self._seldom = Seldom()
        for observer in observers:
            self.add(observer)

    def add(self, observer: Observer) -> None:
        """Call this one too, from now on, as the last."""
        for what, nothing in _NOTHING.items():
            method = getattr(observer, what)
            # What does nothing is not called: this is done for each message.
            if getattr(method, "__func__", None) is not nothing:
                self._methods[what] = (*self._methods.get(what, ()), (observer, method))

    def received(self, message: Facts) -> None:
        self._tell("received", message)

    def started(self, message: Facts) -> None:
        self._tell("started", message)

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self._tell("ended", message, happened, outcome)

    def settled(self, message: Facts, outcome: Outcome, error: str | None) -> None:
        self._tell("settled", message, outcome, error)

    def lost(self, message: Facts, why: str) -> None:
        self._tell("lost", message, why)

    def published(self, queue: str, count: int) -> None:
        self._tell("published", queue, count)

    def polled(self, queue: str, asked: int, count: int) -> None:
        self._tell("polled", queue, asked, count)

    def called(self, action: str, queue: str, seconds: float, error: str | None) -> None:
        self._tell("called", action, queue, seconds, error)

    def paused(self, reasons: frozenset[str]) -> None:
        self._tell("paused", reasons)

    def redriven(self, messages: Sequence[Facts], began_at: datetime) -> None:
        self._tell("redriven", messages, began_at)

    def received_all(self, messages: Sequence[Facts]) -> None:
        """Messages were received: see `received`."""
        self._tell_all("received", [(message,) for message in messages])

    def started_all(self, messages: Sequence[Facts]) -> None:
        """The messages of a job started: see `started`."""
        self._tell_all("started", [(message,) for message in messages])

    def ended_all(self, ended: Sequence[tuple[Facts, Happened, Outcome]]) -> None:
        """Deliveries ended: see `ended`."""
        self._tell_all("ended", ended)

    def settled_all(self, settled: Sequence[tuple[Facts, Outcome, str | None]]) -> None:
        """Outcomes were reported to SQS, or will not be: see `settled`."""
        self._tell_all("settled", settled)

    def _tell(self, what: str, *facts: Any) -> None:
        self._tell_all(what, [facts])

    def _tell_all(self, what: str, each: Sequence[tuple[Any, ...]]) -> None:
        for observer, method in self._methods.get(what, ()):
            left = self._told(observer, what, each) if isinstance(observer, Together) else each
            self._tell_one(observer, method, what, left)

    def _told(
        self, observer: Together, what: str, each: Sequence[tuple[Any, ...]]
    ) -> Sequence[tuple[Any, ...]]:
        """Those of the steps that the observer has not heard of yet."""
        try:
            return observer.together(what, each)
        except Exception as exc:
            # Broad on purpose: no message may fail because of its line.
            self._log_failure(observer, what, exc)
            return ()

    def _tell_one(
        self,
        observer: Observer,
        method: Callable[..., None],
        what: str,
        each: Sequence[tuple[Any, ...]],
    ) -> None:
        for facts in each:
            try:
                method(*facts)
            except (Exception, SystemExit) as exc:
                # Broad on purpose: an observer is foreign code and must not affect a message.
                self._log_failure(observer, what, exc)

    def _log_failure(self, observer: Observer, what: str, exc: BaseException) -> None:
        if not self._seldom.allows((type(observer), what), monotonic()):
            return
        logger.error(
            "An observer failed (%s.%s, %s). Messages are not affected.",
            type(observer).__name__,
            what,
            label(exc),
            extra={"event": "observer.failed", "error": label(exc)},
        )
