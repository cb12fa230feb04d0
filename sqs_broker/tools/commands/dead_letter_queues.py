"""What the commands on dead letters share: a filter, and reading the dead-letter queues."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import click

from sqs_broker.limits import MOST_IN_FLIGHT
from sqs_broker.rules.bounded_pattern import Unbounded, compiled, search
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.broker import asking, driver_of, options_of
from sqs_broker.tools.commands.durations import Duration
from sqs_broker.tools.commands.output import print_note
from sqs_broker.tools.dead_letters import Counts, DeadLetterMessage, Reader, count_messages


@dataclass(frozen=True)
class Filter:
    """Which messages are selected. A criterion that is not given selects all."""

    queue: str | None = None
    reason: str | None = None
    error: str | None = None
    task: str | None = None
    ids: tuple[str, ...] = ()
    older_than: timedelta | None = None
    newer_than: timedelta | None = None
    match: re.Pattern[str] | None = None
    now: datetime = field(default_factory=partial(datetime.now, UTC))

    def matches(self, message: DeadLetterMessage) -> bool:
        """Whether the filter selects a message. A message whose queue is not known matches every
        queue."""
        why = f"{message.error or ''}: {message.reason}".lower()
        return (
            (self.queue is None or message.queue in (None, self.queue))
            and (self.reason is None or self.reason.lower() in why)
            and (self.error is None or fnmatchcase(message.error or "", self.error))
            and (self.task is None or fnmatchcase(message.task or "", self.task))
            and (not self.ids or bool({message.id, message.delivery.message_id} & set(self.ids)))
            and self._has_age(self.now - message.dead_since)
            and (self.match is None or search(self.match, _text_of(message)))
        )

    @property
    def is_narrow(self) -> bool:
        """Whether it may leave out some messages of a queue."""
        return any(
            (self.reason, self.error, self.task, self.ids, self.older_than, self.newer_than)
        ) or (self.match is not None)

    @property
    def text(self) -> str:
        """The criteria in one line; empty without one."""
        criteria = {
            "queue": self.queue,
            "id": ", ".join(self.ids),
            "task": self.task,
            "error": self.error,
            "reason": self.reason,
            "older than": self.older_than,
            "newer than": self.newer_than,
            "regular expression": self.match and self.match.pattern,
        }
        return ", ".join(f"{name}: {value}" for name, value in criteria.items() if value)

    def _has_age(self, age: timedelta) -> bool:
        return (self.older_than is None or age >= self.older_than) and (
            self.newer_than is None or age <= self.newer_than
        )


def _text_of(message: DeadLetterMessage) -> str:
    return "\n".join((message.id, message.task or "", message.error or "", message.reason))


class BoundedPattern(click.ParamType[re.Pattern[str]]):
    """A regular expression that cannot take long."""

    name = "regex"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> re.Pattern[str]:
        """Compile it. Fails if it is wrong or could take too long."""
        if isinstance(value, re.Pattern):
            return value
        try:
            return compiled(str(value))
        except Unbounded as exc:
            self.fail(str(exc), param, ctx)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Filter` to a command."""
    for option in (
        click.option("--id", "ids", multiple=True, help="Message id. Can be repeated."),
        click.option("--task", help="Task name, or a glob such as 'import*'."),
        click.option("--reason", help="Part of the reason or of the error; case is ignored."),
        click.option("--error", help="Class of the error, or a glob such as '*Timeout*'."),
        click.option("--older-than", type=Duration(), help="Dead for so long, such as 2h."),
        click.option("--newer-than", type=Duration(), help="Dead for no longer, such as 7d."),
        click.option(
            "--match",
            type=BoundedPattern(),
            help="Regular expression in id, task, error or reason; case is ignored.",
        ),
        click.option("--queue", help="Queue that the messages came from. Default: all queues."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class DeadLetterQueue:
    """One dead-letter queue as it was when the command started."""

    url: str
    counts: Counts


class DeadLetterQueues:
    """The dead-letter queues of a Celery app."""

    def __init__(self, celery_app: Any) -> None:
        self.options = options_of(celery_app)
        self.driver = driver_of(self.options)

    def select(self, queue: str | None) -> list[DeadLetterQueue]:
        """The dead-letter queues of one queue, or of all, each once.

        Raises ClickException if the queue is not configured, if a dead-letter queue cannot be read,
        or if reading it would move its messages to another queue.
        """
        if queue is not None and queue not in self.options.queues:
            known = ", ".join(self.options.queues)
            raise click.BadParameter(
                f"no queue {queue!r} is configured; the configured queues are: {known}"
            )
        named = [q for name, q in self.options.queues.items() if queue in (None, name)]
        urls = dict.fromkeys(q.dead_letter_url for q in named if q.dead_letter_url)
        if not urls:
            raise click.ClickException("No dead-letter queue is configured: set dead_letter_url.")
        return [self._counted(url) for url in urls]

    @contextmanager
    def reading(
        self,
        queue: DeadLetterQueue,
        is_interrupted: Callable[[], bool],
        limit: int | None = None,
        per_message: float = 0.0,
        more_time: float = 0.0,
    ) -> Iterator[Reader]:
        """A reader of up to `limit` messages, or of all. Each takes about `per_message` seconds,
        and all together `more_time` seconds. At the end of the block, stderr says which messages
        were not read or are still hidden."""
        visible = queue.counts.visible
        expected = visible if limit is None else min(limit, visible)
        dead_letters = Queue(queue.url, self.driver)
        reader = Reader(
            dead_letters,
            self.options,
            expected=expected,
            is_stopping=is_interrupted,
            per_message=per_message,
            more_time=more_time,
        )
        with asking("ReceiveMessage", queue.url), reader:
            yield reader
        if queue.counts.in_flight:
            print_note(
                f"{queue.counts.in_flight} more are hidden, because another command has received "
                "them. They were not read."
            )
        if reader.is_full:
            print_note(
                f"Not all messages were read: SQS hides at most {MOST_IN_FLIGHT} at one time. Run "
                "the command again once those that were read are gone."
            )
        if reader.is_out_of_time:
            print_note("Not all messages were read in time. Run the command again.")
        if reader.still_hidden:
            print_note(
                f"{reader.still_hidden} stay hidden for up to {reader.visibility_timeout} s: SQS "
                "did not make them visible again."
            )

    def _counted(self, url: str) -> DeadLetterQueue:
        with asking("GetQueueAttributes", url):
            counts = count_messages(Queue(url, self.driver))
        if counts.has_redrive_policy:
            raise click.ClickException(
                f"{url}: this dead-letter queue has a redrive policy of its own. Reading its "
                "messages would in the end move them to another queue. Remove the policy."
            )
        return DeadLetterQueue(url, counts)


def matching(reader: Reader, filter_: Filter) -> Iterator[DeadLetterMessage]:
    """The messages that the filter selects, one by one."""
    for messages in reader.batches():
        yield from filter(filter_.matches, messages)
