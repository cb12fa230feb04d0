"""Dead letters for Flower's page: a snapshot, and one job at a time. No web here.

A snapshot has the ids and reasons of dead letters, and no bodies. It and the jobs take the same
memory for any number of them.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sqs_broker.limits import BATCH
from sqs_broker.machine import threads
from sqs_broker.machine.spool import Spool
from sqs_broker.options import Options
from sqs_broker.rules.dead_letter import restored
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.broker import asking
from sqs_broker.tools.commands.dead_letter_queues import Filter
from sqs_broker.tools.commands.dlq import readable
from sqs_broker.tools.commands.redrive import GONE, WHICH_QUEUE
from sqs_broker.tools.dead_letters import Counts, DeadLetterMessage, Reader, count_messages
from sqs_broker.tools.edit import EditError, changed_to, form_of, kept
from sqs_broker.tools.failed_attempts import Attempts, attempts_of
from sqs_broker.tools.ledger import Ledger, ledger_of
from sqs_broker.tools.redrive import DELETE_TRIES, HELD, OUT_OF_TIME, Redrive

#: Rows of one page.
PAGE = 50

#: Most reasons that are counted separately.
MOST_REASONS = 200

#: What became of dead letters that were meant and not read.
NOT_FOUND = "not found (gone, or hidden by another reader)"

#: What a masked value is shown as.
HIDDEN = "(hidden)"

#: The fields of an envelope whose values are shown although the rest is masked: what the message
#: is, not whose. In its data the same names may be those of a person.
PLAIN = frozenset({"id", "task", "action", "version"})

#: The fields that have an envelope, or a part of one: the body, a notification's message, and the
#: headers of Celery.
ENVELOPES = frozenset({"body", "Message", "headers"})

Row = Mapping[str, Any]


@dataclass
class Snapshot:
    """The dead letters that a read has seen and its filter selected."""

    filter: Filter
    by: str
    at: datetime
    seen: int = 0
    """How many were read, whether or not they match."""
    expected: int = 0
    """How many there were, as SQS counts them."""
    hidden: int = 0
    """How many another reader had received, so that this one did not see them."""
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By task, error and reason."""
    rows: Spool = field(default_factory=Spool)
    """By SQS's MessageId, a row as JSON."""

    @property
    def mark(self) -> str:
        """Differs from that of any other snapshot."""
        return self.at.isoformat()

    def add(self, message: DeadLetterMessage) -> None:
        """Add a dead letter."""
        reason = (message.task or "", message.error or "", message.reason)
        if reason not in self.reasons and len(self.reasons) >= MOST_REASONS:
            reason = ("", "", "(other reasons)")
        self.reasons[reason] += 1
        shown = ("id", "task", "queue", "error", "reason", "deliveries", "at")
        row = {name: getattr(message, name) for name in shown}
        self.rows.add([(message.delivery.message_id, json.dumps(row))])

    def page(self, number: int) -> Sequence[Row]:
        """The rows of a page, from 0."""
        found = self.rows.page(number * PAGE, PAGE)
        return [{"sqs_id": key} | json.loads(text) for key, text in found]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Job:
    """A read, a redrive, a dry run or a purge that somebody has started."""

    name: str
    by: str
    total: int
    done: int = 0
    """How many were read."""
    found: int = 0
    """How many of them were meant."""
    results: Counter[str] = field(default_factory=Counter)
    error: str | None = None
    is_over: bool = False

    @property
    def text(self) -> str:
        """What it has done so far, in one line."""
        counted = ", ".join(
            f"{number} {what}" for what, number in sorted(self.results.items()) if number
        )
        state = self.error or ("done" if self.is_over else "running")
        of_all = f"{self.done} of about {max(self.done, self.total)}"
        said = f"{self.name} by {self.by}: {state.rstrip('.')}. {of_all} read. {counted}"
        return said.rstrip(". ") + "."


@dataclass(frozen=True)
class Letter:
    """What is shown of one dead letter."""

    content: dict[str, Any]
    form: str | None
    """Its body, as a person edits it; None if it cannot be edited."""
    attempts: Attempts
    """Its failed attempts, which have no personal data."""


@dataclass(frozen=True)
class Edit:
    """A checked change of a body, and what became of the message."""

    changed: tuple[str, ...]
    """The paths of the changed fields, without their values."""
    kept: Path | None = None
    """The file that has the original."""
    result: str | None = None
    """None if nothing was sent, because the body was only checked."""
    why: str | None = None


@dataclass(frozen=True)
class Found:
    """A dead letter, and the reader that hides it."""

    message: DeadLetterMessage
    reader: Reader
    url: str


class Letters:
    """The dead letters of one app. Thread-safe: of all who use it, one job runs at a time."""

    def __init__(self, options: Options, driver: Driver) -> None:
        self._options = options
        self._driver = driver
        self._lock = threading.Lock()
        self.snapshot: Snapshot | None = None
        self.job: Job | None = None

    # Jobs. Each returns at once, and False if another job runs.

    def read(self, filter_: Filter, by: str) -> bool:
        """Make a new snapshot."""

        def run(job: Job) -> None:
            made = Snapshot(filter_, by, datetime.now(UTC))
            for url in self._urls(filter_.queue):
                counts = self._counts(url)
                made.expected += counts.visible
                made.hidden += counts.in_flight
                job.total = made.expected
                with asking("ReceiveMessage", url), self._reader(url, counts) as reader:
                    for messages in reader.batches():
                        made.seen += len(messages)
                        job.done = made.seen
                        for message in filter(filter_.matches, messages):
                            made.add(message)
            self.snapshot = made

        return self._begin(Job("Read", by, 0), run)

    def redrive(self, chosen: Sequence[str] | None, by: str, *, is_dry: bool) -> bool:
        """Redrive the dead letters with these MessageIds; None for all of the snapshot."""

        def run(job: Job, ledger: Ledger, reader: Reader, url: str, counts: Counts) -> None:
            with closing(self._redrive(url, reader, ledger, is_dry=is_dry)) as redrive:
                for messages in self._chosen(job, reader, chosen):
                    old = [each for each in messages if each.delivery.enqueued_at < counts.at]
                    known = [each for each in map(self._with_queue, old) if each.queue is not None]
                    job.results["arrived later"] += len(messages) - len(old)
                    job.results[f"not sent ({WHICH_QUEUE})"] += len(old) - len(known)
                    results = redrive(known)
                    if not is_dry:
                        gone = [each.message for each in results if each.result in GONE]
                        reader.forget(each.delivery.message_id for each in gone)
                    for each in results:
                        why = f" ({each.why})" if each.why else ""
                        would = "would be " if is_dry else ""
                        job.results[f"{would}{each.result}{why}"] += 1
                    if known and redrive.is_refused:
                        return

        return self._act("Dry run" if is_dry else "Redrive", by, chosen, run)

    def purge(self, chosen: Sequence[str] | None, by: str) -> bool:
        """Delete the dead letters with these MessageIds; None for all of the snapshot."""

        def run(job: Job, ledger: Ledger, reader: Reader, url: str, counts: Counts) -> None:
            queue = Queue(url, self._driver)
            for messages in self._chosen(job, reader, chosen):
                ledger.note("purge", [message.id for message in messages])
                handles = [message.delivery.receipt_handle for message in messages]
                errors = queue.delete(handles, DELETE_TRIES)
                pairs = list(zip(messages, errors, strict=True))
                reader.forget(each.delivery.message_id for each, error in pairs if error is None)
                for _, error in pairs:
                    job.results["deleted" if error is None else f"not deleted ({error.code})"] += 1

        return self._act("Purge", by, chosen, run)

    # One dead letter

    def find(self, sqs_id: str) -> Letter | None:
        """A dead letter; None if it is not there, or hidden by another reader.

        Raises ClickException if SQS refuses the read.
        """
        with self._found(sqs_id) as found:
            message = None if found is None else found.message
        # Not while the dead letter is hidden: the control database may take seconds.
        return None if message is None else _letter_of(message, self._options)

    def edit(
        self, sqs_id: str, text: str, by: str, tasks: Mapping[str, Any], kept_in: Path | None
    ) -> Edit | None:
        """Redrive a dead letter with this body, in the form that `find` gave; None if it is not
        there. First write the original to a file in `kept_in`; without it, only check the body.

        Raises EditError if the body cannot be sent, and ClickException if SQS or the control
        database refuses. Then nothing was sent.
        """
        with ledger_of(self._options, by=by) as ledger, self._found(sqs_id) as found:
            if found is None:
                return None
            message = self._with_queue(found.message)
            if message.queue is None:
                raise EditError(f"{WHICH_QUEUE}. Nothing is sent.")
            new = changed_to(message, text, self._options, tasks)
            if kept_in is None:
                return Edit(new.changed)
            if found.reader.seconds_left() < HELD:
                raise EditError(f"{OUT_OF_TIME}. Nothing is sent.")
            path = kept(message, found.url, kept_in)
            ledger.note("edit", [message.id], changed=list(new.changed))
            with closing(self._redrive(found.url, found.reader, ledger)) as redrive:
                (result,) = redrive([new.message])
            if result.result in GONE:
                found.reader.forget([sqs_id])
            return Edit(new.changed, path, str(result.result), result.why)

    @contextmanager
    def _found(self, sqs_id: str) -> Iterator[Found | None]:
        """The dead letter with this MessageId, hidden from others until the end of the block."""
        for url in self._urls(None):
            counts = self._counts(url)
            with asking("ReceiveMessage", url), self._reader(url, counts) as reader:
                for messages in reader.batches():
                    for message in messages:
                        if message.delivery.message_id == sqs_id:
                            yield Found(message, reader, url)
                            return
        yield None

    def note(self, action: str, ids: Sequence[str], by: str) -> None:
        """Write to the audit. Raises ClickException."""
        with ledger_of(self._options, by=by) as ledger:
            ledger.note(action, ids)

    def _act(
        self,
        name: str,
        by: str,
        chosen: Sequence[str] | None,
        run: Callable[[Job, Ledger, Reader, str, Counts], None],
    ) -> bool:
        def act(job: Job) -> None:
            meant = len(self.snapshot or ()) if chosen is None else len(set(chosen))
            with ledger_of(self._options, by=by) as ledger:
                for url in self._urls(None):
                    counts = self._counts(url)
                    job.total += counts.visible
                    with asking("ReceiveMessage", url), self._reader(url, counts) as reader:
                        run(job, ledger, reader, url, counts)
            job.results[NOT_FOUND] += max(meant - job.found, 0)

        return self._begin(Job(name, by, 0), act)

    def _begin(self, job: Job, run: Callable[[Job], None]) -> bool:
        with self._lock:
            if self.job is not None and not self.job.is_over:
                return False
            self.job = job

        def to_its_end() -> None:
            try:
                run(job)
            except click.ClickException as exc:
                job.error = exc.message
            except SqsError as exc:
                job.error = exc.code
            except Exception as exc:
                # Broad on purpose: whoever waits must learn that the job has ended.
                job.error = type(exc).__name__
            finally:
                job.is_over = True

        if threads.start(to_its_end, "sqs-dead-letters") is None:
            job.error, job.is_over = "this machine is short of threads", True
        return True

    def _chosen(
        self, job: Job, reader: Reader, chosen: Sequence[str] | None
    ) -> Iterator[list[DeadLetterMessage]]:
        """The chosen ones of each batch. Ends when all chosen ones were found."""
        snapshot = self.snapshot
        wanted = None if chosen is None else set(chosen)
        for messages in reader.batches():
            job.done += len(messages)
            found = [m for m in messages if _is_chosen(m.delivery.message_id, wanted, snapshot)]
            job.found += len(found)
            if found:
                yield found
            if wanted is not None:
                wanted -= {message.delivery.message_id for message in found}
                if not wanted:
                    return

    def _with_queue(self, message: DeadLetterMessage) -> DeadLetterMessage:
        queue = self.snapshot.filter.queue if self.snapshot else None
        return message if message.queue else replace(message, queue=queue)

    def _urls(self, queue: str | None) -> list[str]:
        named = [each for name, each in self._options.queues.items() if queue in (None, name)]
        return list(dict.fromkeys(each.dead_letter_url for each in named if each.dead_letter_url))

    def _counts(self, url: str) -> Counts:
        with asking("GetQueueAttributes", url):
            counts = count_messages(Queue(url, self._driver))
        if counts.has_redrive_policy:
            raise click.ClickException(f"{url} has a redrive policy of its own: remove it.")
        return counts

    def _redrive(
        self, url: str, reader: Reader, ledger: Ledger, *, is_dry: bool = False
    ) -> Redrive:
        left = reader.seconds_left
        return Redrive(self._driver, self._options, url, left, is_dry=is_dry, ledger=ledger)

    def _reader(self, url: str, counts: Counts) -> Reader:
        expected = max(counts.visible, BATCH)
        return Reader(Queue(url, self._driver), self._options, expected=expected, more_time=HELD)


def masked(content: Mapping[str, Any]) -> dict[str, Any]:
    """A dead letter with everything hidden that may be personal: names of fields are shown."""
    return {name: _masked_field(name, value) for name, value in content.items()}


def _masked_field(name: str, value: Any) -> Any:
    if name in ENVELOPES and isinstance(value, dict):
        return masked(value)
    is_plain = name in PLAIN and isinstance(value, str | int)
    return value if is_plain else _hidden(value)


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _hidden(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner) for inner in value]
    return value if value is None or isinstance(value, bool) else HIDDEN


def _is_chosen(sqs_id: str, wanted: set[str] | None, snapshot: Snapshot | None) -> bool:
    if wanted is not None:
        return sqs_id in wanted
    return snapshot is not None and sqs_id in snapshot.rows


def _letter_of(message: DeadLetterMessage, options: Options) -> Letter:
    attributes = {
        name: {key: value for key, value in attribute.items() if key != "BinaryValue"}
        for name, attribute in restored(message.delivery.attributes).items()
    }
    body = message.delivery.body
    content = {"id": message.id, "attributes": attributes, "body": readable(body)}
    form: str | None = None
    with suppress(EditError):
        form = form_of(body)
    return Letter(content, form, attempts_of(options, message))
