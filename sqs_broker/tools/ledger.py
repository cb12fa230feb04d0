"""What the commands on dead letters record: how often a message was redriven, and who did what."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

import click

from sqs_broker.errors import ControlPlaneDown
from sqs_broker.options import Options
from sqs_broker.tools.control_store import control_store, has_control
from sqs_broker.tools.dead_letters import DeadLetterMessage
from sqs_broker.tools.identity import who

#: Seconds that the control database has to answer before anything is done.
PATIENCE = 5.0


class Ledger(Protocol):
    """Keeps counts and the audit by the ids of messages. Nothing is ever written to a message.

    Each method raises ClickException if it cannot read or write: then nothing is sent or deleted.
    """

    def counts(self, messages: Sequence[DeadLetterMessage]) -> Mapping[str, int]:
        """How often each message was redriven before, by its id."""

    def redriving(self, messages: Sequence[DeadLetterMessage]) -> None:
        """Record that these are redriven next."""

    def note(self, action: str, ids: Sequence[str], **facts: Any) -> None:
        """Record that this is done next to the messages with these ids."""


class NoLedger:
    """For a project without a control database: nothing is recorded."""

    def counts(self, messages: Sequence[DeadLetterMessage]) -> Mapping[str, int]:
        """No message was redriven, as far as is known."""
        return {}

    def redriving(self, messages: Sequence[DeadLetterMessage]) -> None:
        """Do nothing."""

    def note(self, action: str, ids: Sequence[str], **facts: Any) -> None:
        """Do nothing."""


class ControlLedger:
    """In the control database."""

    def __init__(self, store: Any, by: str) -> None:
        from sqs_broker.control.audit import Audit  # These need pymongo.
        from sqs_broker.control.redrives import Redrives

        self._redrives, self._audit, self._by = Redrives(store), Audit(store), by

    def counts(self, messages: Sequence[DeadLetterMessage]) -> Mapping[str, int]:
        """How often each message was redriven before, by its id."""
        with _refusing():
            return self._redrives.counts([message.id for message in messages])

    def redriving(self, messages: Sequence[DeadLetterMessage]) -> None:
        """Record that these are redriven next."""
        with _refusing():
            self._redrives.add({m.id: m.delivery.message_id for m in messages})
        self.note("redrive", [message.id for message in messages])

    def note(self, action: str, ids: Sequence[str], **facts: Any) -> None:
        """Record that this is done next to the messages with these ids."""
        with _refusing():
            self._audit.note(action, self._by, ids=list(ids), **facts)


@contextmanager
def ledger_of(
    options: Options, *, is_recorded: bool = True, by: str | None = None
) -> Iterator[Ledger]:
    """The ledger of a command; none if the options name no control database, or if the person who
    runs the command wants none.

    Raises ClickException if the control database does not answer.
    """
    if not (is_recorded and has_control(options)):
        yield NoLedger()
        return
    from sqs_broker.control.redrives import Redrives  # These need pymongo.
    from sqs_broker.control.store import Store

    with control_store(options, PATIENCE) as store:
        Redrives(store).counts([])  # If it fails, then here, before anything is read or sent.
    with closing(Store(options.control_options())) as store:
        yield ControlLedger(store, who(options) if by is None else by)


@contextmanager
def _refusing() -> Iterator[None]:
    from sqs_broker.control.faults import answering  # This needs pymongo.

    try:
        with answering():
            yield
    except ControlPlaneDown as exc:
        raise click.ClickException(
            f"The control database does not keep the record: {exc.message}. Nothing more was "
            "done. `--unrecorded` works without it."
        ) from exc
