"""The queues of an app for Flower's pages: their counts and their pauses. No web here."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import click

from sqs_broker.options import Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.tools.broker import is_aws
from sqs_broker.tools.commands.queues import ages_of, count, remembered
from sqs_broker.tools.flower.figures import Look, QueueFigures
from sqs_broker.tools.pauses import pauses_of

#: Seconds for SQS to begin its answer, without a retry, because a person waits for the page. The
#: whole call may take twice as long.
READ_TIMEOUT = 5

#: Threads of their own: a slow SQS must not occupy Flower's threads, which wait for workers.
_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="sqs-queues")


@dataclass(frozen=True)
class Said:
    """What a change said, line by line, and whether all of it was done."""

    lines: tuple[str, ...]
    is_done: bool


class Queues:
    """Counts the configured queues, and changes their pauses."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.is_aws = is_aws(options.endpoint_url)
        self._driver = driver_for(
            options, read_timeout=READ_TIMEOUT, tries=1, seconds=2 * READ_TIMEOUT
        )
        self._ages = remembered(lambda: ages_of(options))
        self.figures = QueueFigures(self.look)

    async def look(self) -> Look:
        """Each queue, followed by its dead-letter queue, and which of them are paused."""
        return await asyncio.get_running_loop().run_in_executor(_threads, self._read)

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """All queues in the form of Flower's API, not only `names`, which lack the dead-letter
        queues."""
        rows = (await self.look()).rows
        return [{"name": row.queue, "messages": row.visible} | asdict(row) for row in rows]

    async def change(self, change: Callable[[Options], Iterator[str]]) -> Said:
        """Pause or resume a queue."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_threads, self._change, change)

    def _read(self) -> Look:
        ages = self._ages()
        rows = [
            replace(row, oldest=ages.get(row.queue)) for row in count(self._driver, self.options)
        ]
        try:
            paused = pauses_of(self.options)
        except click.ClickException as exc:
            return Look(rows, exc.message)
        return Look([replace(row, paused=paused.get(row.queue)) for row in rows])

    def _change(self, change: Callable[[Options], Iterator[str]]) -> Said:
        lines: list[str] = []
        try:
            lines.extend(change(self.options))
        except click.ClickException as exc:
            return Said((*lines, exc.message), is_done=False)
        return Said(tuple(lines), is_done=True)


@cache
def queues_of(celery_app: Any) -> Queues:
    """The queues of a Celery app on this broker."""
    return Queues(Options.read(celery_app.conf.broker_transport_options))
