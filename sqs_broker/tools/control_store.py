"""The control database for one command of an operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sqs_broker.control.planes import check_driver
from sqs_broker.errors import ConfigurationError, ControlPlaneDown
from sqs_broker.options import Options

if TYPE_CHECKING:
    from sqs_broker.control.store import Store

#: Seconds for all calls of a command that only reads or writes a few documents.
TIMEOUT = 10.0

#: Seconds for a command that shows the pauses beside other things.
QUICK = 2.0


def has_control(options: Options) -> bool:
    """Whether the options name a control database."""
    return options.control_options().uri is not None


@contextmanager
def control_store(options: Options, timeout: float = TIMEOUT) -> Iterator["Store"]:
    """The store of the control database; its calls take at most `timeout` seconds together.

    Raises ClickException if there is none, if it does not answer, and if it refuses a call.
    """
    control = options.control_options()
    try:
        control.require_uri()
        check_driver(control)
    except ConfigurationError as exc:
        raise click.ClickException(exc.message) from exc
    from sqs_broker.control.faults import Refused  # These need pymongo.
    from sqs_broker.control.trial import trial

    try:
        with trial(control, timeout) as store:
            yield store
    except ControlPlaneDown as exc:
        if isinstance(exc.__cause__, Refused):
            raise click.ClickException(f"Control plane: {exc.__cause__.fault}") from exc
        raise click.ClickException(f"{exc.message}. Check that it runs and its address.") from exc
