"""What the commands on dead letters share: which letters are meant, and a look at them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import click

from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.commands.broker import asking, driver_of, options_of
from sqs_broker.tools.commands.output import say
from sqs_broker.tools.letters import Counts, Letter, Look, count_letters


@dataclass(frozen=True)
class Filter:
    """Which letters are meant; what is not given lets all through."""

    queue: str | None = None
    reason: str | None = None
    task: str | None = None
    ids: tuple[str, ...] = ()

    def lets(self, letter: Letter) -> bool:
        """Whether a letter is meant. One of an unknown queue belongs to the queue that is named."""
        said = f"{letter.error or ''}: {letter.reason}".lower()
        return (
            (self.queue is None or letter.queue in (None, self.queue))
            and (self.reason is None or self.reason.lower() in said)
            and (self.task is None or fnmatchcase(letter.task or "", self.task))
            and (not self.ids or bool({letter.id, letter.delivery.message_id} & set(self.ids)))
        )

    @property
    def is_narrow(self) -> bool:
        """Whether letters may be there that are not meant."""
        return bool(self.reason or self.task or self.ids)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `list` and `redrive` that say which letters are meant."""
    for option in (
        click.option("--id", "ids", multiple=True, help="Message id; may be given several times."),
        click.option("--task", help="Task name, or a glob such as 'import*'."),
        click.option("--reason", help="Part of the reason or of the error, in any case."),
        click.option("--queue", help="Queue that the letters came from; without it, all."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class Box:
    """One dead-letter queue as it was when the command started."""

    url: str
    counts: Counts


class Desk:
    """What the commands work with."""

    def __init__(self, celery_app: Any) -> None:
        self.options = options_of(celery_app)
        self.driver = driver_of(self.options)

    def boxes(self, queue: str | None) -> list[Box]:
        """The dead-letter queues of one queue or all, each once. Raises ClickException for an
        unknown queue, one that cannot be read, and one where looking does harm."""
        if queue is not None and queue not in self.options.queues:
            known = ", ".join(self.options.queues)
            raise click.BadParameter(f"no queue {queue!r} is configured; there is: {known}")
        named = [q for name, q in self.options.queues.items() if queue in (None, name)]
        urls = dict.fromkeys(q.dead_letter_url for q in named if q.dead_letter_url)
        if not urls:
            raise click.ClickException("No dead-letter queue is configured: AWS_SQS_DLQ_URL.")
        return [self._box(url) for url in urls]

    @contextmanager
    def looking(
        self, box: Box, is_interrupted: Callable[[], bool], most: int | None = None
    ) -> Iterator[Look]:
        """A look at the letters, `most` of them or all; says at its end what is left of it."""
        expected = box.counts.visible if most is None else min(most, box.counts.visible)
        dead_letters = Queue(box.url, self.driver)
        look = Look(dead_letters, self.options, expected=expected, is_stopping=is_interrupted)
        with asking("ReceiveMessage", box.url), look:
            yield look
        if box.counts.in_flight:
            say(f"{box.counts.in_flight} more are held by another look and were not seen.")
        if look.is_cut_short:
            say("There are more than could be looked at in one go: run it again.")
        if look.still_held:
            say(f"{look.still_held} stay hidden for up to {look.hold} s: SQS did not let go.")

    def _box(self, url: str) -> Box:
        with asking("GetQueueAttributes", url):
            counts = count_letters(Queue(url, self.driver))
        if counts.has_redrive_policy:
            raise click.ClickException(
                f"{url}: this dead-letter queue has a redrive policy of its own, so that looking "
                "at its letters would in the end move them on. Remove the policy."
            )
        return Box(url, counts)


def meant(look: Look, filter_: Filter) -> Iterator[Letter]:
    for letters in look.batches():
        yield from filter(filter_.lets, letters)
