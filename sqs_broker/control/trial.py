"""A store for somebody who looks whether the control plane works, and then goes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pymongo
from pymongo.errors import PyMongoError

from sqs_broker.control.store import Store
from sqs_broker.errors import ControlPlaneDown, label
from sqs_broker.options import ControlOptions


@contextmanager
def trial(options: ControlOptions, timeout: float) -> Iterator[Store]:
    """A store whose calls take at most `timeout` seconds together. Closed at the end of the block.

    Raises ControlPlaneDown for errors of pymongo in the block.
    """
    try:
        with closing(Store(options)) as store, pymongo.timeout(timeout):
            yield store
    except PyMongoError as exc:
        raise ControlPlaneDown(f"MongoDB does not answer or refuses a call: {label(exc)}") from exc
