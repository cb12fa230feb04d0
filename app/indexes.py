"""Compares indexes that MongoDB reports with the declared ones, and remembers what was seen."""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from pymongo.collection import Collection
from pymongo.errors import OperationFailure

Info = Mapping[str, Any]

#: Seconds for which an index that was seen counts as present.
LASTS = 10.0

#: The options of an index that change what it does. Other options only say how it is stored.
_MEANINGFUL = ("unique", "sparse", "partialFilterExpression", "expireAfterSeconds", "collation")


class Sight:
    """Whether the indexes of a collection were seen, as declared, within the last LASTS seconds.

    It looks itself, with one call to MongoDB, and at most once in that time. `clock` returns
    monotonic seconds. What one client has seen does not count for another.
    """

    def __init__(self, declared: Sequence[Info], clock: Callable[[], float] = monotonic) -> None:
        self._declared = declared
        self._clock = clock
        self._client: Any = None
        self._looked_at = 0.0
        self._is_there = False

    def has_all(self, collection: Collection[dict[str, Any]]) -> bool:
        """Whether all indexes are there. False if MongoDB does not allow to look. Raises pymongo's
        other errors."""
        client, now = collection.database.client, self._clock()
        if client is not self._client or now - self._looked_at >= LASTS:
            # Measured from before the call: what it reports was true after this moment.
            self._is_there = self._look(collection)
            self._client, self._looked_at = client, now
        return self._is_there

    def _look(self, collection: Collection[dict[str, Any]]) -> bool:
        try:
            found = list(collection.list_indexes())
        except OperationFailure:
            return False
        return all(
            any(has_keys(index, each) and is_as_declared(index, each) for index in found)
            for each in self._declared
        )


def has_keys(found: Info, declared: Info) -> bool:
    """Whether an index that MongoDB reports has the fields of the declared one."""
    return [(name, _direction(value)) for name, value in found["key"].items()] == [
        (name, 1) for name in declared["fields"]
    ]


def _direction(value: Any) -> Any:
    # MongoDB may return whole numbers as floats. Other kinds of index have a word here.
    return int(value) if isinstance(value, int | float) else value


def is_as_declared(found: Info, declared: Info) -> bool:
    """Whether an index with the fields of the declared one works as that one."""
    return not differences(found, declared)


def differences(found: Info, declared: Info) -> list[str]:
    """The options by which an index works differently from the declared one with the same keys."""
    options = {name: found.get(name) or None for name in _MEANINGFUL if name != "collation"}
    wanted = {name: declared.get(name) or None for name in options}
    differing = [name for name in options if options[name] != wanted[name]]
    # 0 seconds is not the same as no expiry.
    if ("expireAfterSeconds" in found) != ("expireAfterSeconds" in declared):
        differing.append("expireAfterSeconds")
    if not is_simple(found.get("collation")):
        differing.append("collation")
    if found.get("hidden"):
        differing.append("hidden")
    return differing


def is_simple(collation: Info | None) -> bool:
    """Whether a collation treats only equal texts as equal."""
    return collation is None or collation.get("locale") == "simple"
