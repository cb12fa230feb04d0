"""The planes of this process, one for each set of options. pymongo is imported only with the first
plane, because a process without a control plane may not have it.
"""

import atexit
import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import ControlOptions
from sqs_broker.rules.attempts import AttemptStore

if TYPE_CHECKING:
    from sqs_broker.control.plane import Plane

_planes: dict[ControlOptions, "Plane"] = {}
_lock = threading.Lock()

#: The planes of parent processes. They are neither used nor closed here, because their sockets
#: belong to the parents.
_of_parents: list["Plane"] = []


def plane_for(options: ControlOptions) -> "Plane":
    """This process's plane for these options, created on the first call.

    Raises ConfigurationError if the options name no MongoDB, or pymongo is not installed.
    """
    with _lock:
        if options not in _planes:
            _planes[options] = _open(options)
        return _planes[options]


def attempts_for(
    options: ControlOptions, clock: Callable[[], float] = monotonic
) -> AttemptStore | None:
    """The store of failed runs for these options; None if they name no MongoDB, or if pymongo is
    not installed. It needs no Celery, and connects at its first use. `clock`, in seconds, measures
    its pauses after a failure."""
    if options.uri is None or find_spec("pymongo") is None:
        return None
    from sqs_broker.control.attempts import MongoAttempts

    return MongoAttempts(lambda: plane_for(options).store, clock)


def check_driver(options: ControlOptions) -> None:
    """Raise ConfigurationError if a control plane is configured but pymongo is not installed."""
    if options.uri is not None and find_spec("pymongo") is None:
        raise ConfigurationError(
            "Events, inspect and control go through MongoDB, but pymongo is not installed. "
            "Run: pip install 'celery-sqs-broker[mongodb]'"
        )


def _open(options: ControlOptions) -> "Plane":
    options.require_uri()
    check_driver(options)
    from sqs_broker.control.plane import Plane

    return Plane(options)


def _reset_after_fork() -> None:
    global _lock
    # Another thread of the parent may have held the lock at the fork.
    _lock = threading.Lock()
    _of_parents.extend(_planes.values())
    _planes.clear()


def _close_all() -> None:
    for plane in _planes.values():
        plane.close()


os.register_at_fork(after_in_child=_reset_after_fork)
atexit.register(_close_all)
