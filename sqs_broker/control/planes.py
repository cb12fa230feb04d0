"""The planes of this process, one for each set of options. Needs no pymongo until one is asked for,
so that a process without a control plane can do without it.
"""

import atexit
import os
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import ControlOptions

if TYPE_CHECKING:
    from sqs_broker.control.plane import Plane

_planes: dict[ControlOptions, "Plane"] = {}
_lock = threading.Lock()

#: Those of the parents of this process: never used, and never closed, for the sockets are theirs.
_left_behind: list["Plane"] = []


def plane_for(options: ControlOptions) -> "Plane":
    """This process's plane, made when it is first asked for.

    Raises ConfigurationError if the options name no MongoDB, or pymongo is not installed.
    """
    with _lock:
        if options not in _planes:
            _planes[options] = _open(options)
        return _planes[options]


def check_driver(options: ControlOptions) -> None:
    """Raise ConfigurationError if a control plane is configured and pymongo is not installed."""
    if options.uri is not None and find_spec("pymongo") is None:
        raise ConfigurationError(
            "Events, inspect and control go through MongoDB, and pymongo is not installed. "
            "Run: pip install 'celery-sqs-broker[mongodb]'"
        )


def _open(options: ControlOptions) -> "Plane":
    options.require_uri()
    check_driver(options)
    from sqs_broker.control.plane import Plane

    return Plane(options)


def _start_anew() -> None:
    global _lock
    # Another thread may have held it at the fork.
    _lock = threading.Lock()
    _left_behind.extend(_planes.values())
    _planes.clear()


def _close_all() -> None:
    for plane in _planes.values():
        plane.close()


os.register_at_fork(after_in_child=_start_anew)
atexit.register(_close_all)
