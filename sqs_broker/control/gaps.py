"""Counts the events that a reader did not read before MongoDB overwrote them."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

#: Most writers whose numbers a reader remembers. Each process that sends events is one.
MOST_WRITERS = 10_000


class Gaps:
    """Finds the gaps in the numbers of each writer's events.

    A writer numbers the events that MongoDB has accepted: a document has the writer's id, the
    number of its last event (`number`) and how many events it holds (`events`). A writer of which
    nothing was read, before or after a gap, is not counted.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[Any, int] = OrderedDict()

    def missed(self, document: Mapping[str, Any]) -> int:
        """The number of events between this document and the writer's last one that was read."""
        writer, number, events = (document.get(name) for name in ("writer", "number", "events"))
        if writer is None or not isinstance(number, int) or not isinstance(events, int):
            return 0  # Of a release that did not number its events.
        last = self._last.pop(writer, None)
        # A document is read again if the reader failed while it passed it on.
        self._last[writer] = number if last is None else max(last, number)
        if len(self._last) > MOST_WRITERS:
            self._last.popitem(last=False)
        return 0 if last is None else max(number - events - last, 0)
