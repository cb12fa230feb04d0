"""Stores revokes, for the workers that start later."""

from collections.abc import Mapping
from typing import Any

from sqs_broker.control.store import Store


def keep(store: Store, command: Mapping[str, Any]) -> bool:
    """Store what a command revokes for all workers. Return whether it is such a command.

    A command to named workers is only for these, as in stock Celery, and is not stored.
    """
    if command.get("destination") or command.get("pattern"):
        return False
    arguments = command.get("arguments") or {}
    match command.get("method"):
        case "revoke" | "terminate":
            store.revoke([str(id_) for id_ in _listed(arguments.get("task_id"))])
        case "revoke_by_stamped_headers":
            store.revoke([], _stamps(arguments.get("headers") or {}))
        case _:
            return False
    return True


def _stamps(headers: Any) -> list[tuple[str, str]]:
    if isinstance(headers, list):
        # The command line sends `header=stamp` (celery 5.7 worker/control.py).
        headers = dict(pair.split("=", 1) for pair in headers)
    return [(header, str(stamp)) for header, stamps in headers.items() for stamp in _listed(stamps)]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | set) else [value]
