"""Many registrations in one request. They are sent while they are read, and only their ids and
faults are kept."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from app.api.checking import ROOT, Invalid, Malformed, parse
from app.api.gatherer import Entry, Full, Gatherer, Mark
from app.api.problems import Fault, Kind, Problem, too_large
from app.errors import Unavailable
from sqs_broker.limits import BATCH, MOST_BYTES
from sqs_broker.sqs.requests import Outgoing, Pack

MOST_ITEMS = 10_000

#: Most messages of one batch that are on their way. Four calls are full, and the next ones too.
WINDOW = 8 * BATCH

#: Seconds between two looks whether the gatherer has room, if nothing of this batch is on its way.
FULL_PAUSE = 0.05

TOO_LONG = Fault("has more than 1 MiB", ROOT)

#: Turns the content of an item into a message and its mark. Raises Invalid or Problem.
Prepare = Callable[[Any], tuple[Mark, Outgoing]]


@dataclass(slots=True)
class Item:
    """What became of one item."""

    id: str | None = None
    faults: tuple[Fault, ...] = ()
    is_accepted: bool = False

    def as_json(self) -> dict[str, Any]:
        """As an element of `items`."""
        if self.faults:
            return {"state": "invalid", "errors": [fault.as_json() for fault in self.faults]}
        if not self.is_accepted:
            return {"state": "unavailable", "id": self.id}
        return {"state": "pending", "id": self.id, "links": {"self": f"/registrations/{self.id}"}}


class Batch:
    """The items of one request, in order. One task uses it."""

    def __init__(self, gatherer: Gatherer, prepare: Prepare, seconds: float) -> None:
        """The batch waits at most `seconds` for room in the gatherer."""
        self.items: list[Item] = []
        self._gatherer = gatherer
        self._prepare = prepare
        self._seconds = seconds
        self._pack = Pack(MOST_BYTES)
        self._packed: list[tuple[Item, Mark]] = []
        self._out: deque[tuple[Item, Entry]] = deque()
        #: Messages in a row that SQS did not take.
        self._failures = 0
        #: Whether SQS seems to be away. Then no more messages are sent.
        self._is_away = False

    async def read(self, lines: AsyncIterator[bytes | None]) -> None:
        """Add the items of lines of JSON. Raises Problem if there are too many."""
        async for line in lines:
            if line is None:
                self._list(Item(faults=(TOO_LONG,)))
                continue
            try:
                content = parse(line)
            except Malformed as exc:
                self._list(Item(faults=(Fault(str(exc), ROOT),)))
            else:
                await self.add(content)

    async def add(self, content: Any) -> None:
        """Add an item. Waits while too many are on their way. Raises Problem if there are too
        many items."""
        try:
            mark, message = self._prepare(content)
        except Invalid as exc:
            self._list(Item(faults=exc.faults))
            return
        except Problem as exc:
            self._list(Item(faults=(Fault(exc.detail, ROOT),)))
            return
        item = Item(mark.id)
        self._list(item)
        if not self._pack.add(message):
            await self._send()
            self._pack.add(message)
        self._packed.append((item, mark))
        if len(self._packed) == BATCH:
            await self._send()

    async def end(self) -> None:
        """Send the last items. Returns once it is known what became of each."""
        await self._send()
        while self._out:
            await self._settle_one()

    def _list(self, item: Item) -> None:
        if len(self.items) == MOST_ITEMS:
            raise too_large(
                f"A batch may have at most {MOST_ITEMS} items. Those before may have been sent; "
                "it does no harm to send them again."
            )
        self.items.append(item)

    async def _send(self) -> None:
        items, messages = self._packed, self._pack.messages
        self._packed, self._pack = [], Pack(MOST_BYTES)
        while len(self._out) > WINDOW - BATCH:
            await self._settle_one()
        if items and not self._is_away:
            marked = [(mark, m) for (_, mark), m in zip(items, messages, strict=True)]
            entries = await self._entries(marked)
            self._out.extend(zip((item for item, _ in items), entries, strict=False))

    async def _entries(self, messages: list[tuple[Mark, Outgoing]]) -> list[Entry]:
        """The messages in the gatherer; none if it has no room for too long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        while loop.time() < end:
            try:
                return self._gatherer.add(messages)
            except Full:
                if self._out:
                    await self._settle_one()
                else:
                    await asyncio.sleep(FULL_PAUSE)
            except Unavailable:
                break
        self._is_away = True
        return []

    async def _settle_one(self) -> None:
        item, entry = self._out.popleft()
        try:
            await entry.sent
        except Unavailable:
            self._failures += 1
            self._is_away = self._is_away or self._failures >= BATCH
        else:
            self._failures = 0
            item.is_accepted = True


def counted(batch: Batch) -> dict[str, int]:
    """How many items were accepted, are invalid, or were not taken by SQS."""
    accepted = sum(item.is_accepted for item in batch.items)
    invalid = sum(bool(item.faults) for item in batch.items)
    return {
        "accepted": accepted,
        "invalid": invalid,
        "unavailable": len(batch.items) - accepted - invalid,
    }


def answer(batch: Batch) -> tuple[int, dict[str, str], Iterator[bytes]]:
    """Status, headers, and the parts of the body of the answer."""
    counts = counted(batch)
    if counts["accepted"]:
        return 202, {"Content-Type": "application/json"}, _body(batch, counts)
    if counts["unavailable"]:
        kind, headers = Kind.UNAVAILABLE, {"Retry-After": "5"}
        detail = "SQS took none of the items."
    else:
        kind, headers = Kind.INVALID, {}
        detail = "All items are invalid." if batch.items else "There are no items."
    problem = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": detail}
    headers["Content-Type"] = "application/problem+json"
    return kind.status, headers, _body(batch, problem | counts)


def _body(batch: Batch, first: dict[str, Any]) -> Iterator[bytes]:
    """The body in parts, so that it is never a whole beside the items."""
    yield json.dumps(first)[:-1].encode() + b', "items": ['
    for start in range(0, len(batch.items), 500):
        part = [json.dumps(item.as_json()) for item in batch.items[start : start + 500]]
        yield (b", " if start else b"") + ", ".join(part).encode()
    yield b"]}"
