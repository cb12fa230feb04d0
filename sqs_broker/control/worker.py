"""The control plane in a worker: the worker loads every revoke before it accepts a message."""

import logging
from functools import partial
from typing import Any

from celery import signals
from celery.worker import state

from sqs_broker.control import commands as commands  # Celery finds them once they are imported.
from sqs_broker.control.planes import plane_for
from sqs_broker.errors import ConfigurationError, label
from sqs_broker.options import ControlOptions

logger = logging.getLogger(__name__)


def attach(consumer: Any) -> None:
    """Load the revokes, now and each time that commands can be received again after an outage.

    Celery's consumer calls this before the event loop delivers the first message.
    """
    control = consumer.connection.transport.control
    check_names(consumer.app.conf, control.options)
    signals.task_revoked.connect(log_revoked)
    if control.options.uri is None:
        logger.info(
            "No control plane is configured. Task messages need none. There are no events, inspect "
            "and control; no revoke reaches this worker; and the deliveries that SQS counts stand "
            "for the runs that failed.",
            extra={"event": "control.none"},
        )
        return
    store = plane_for(control.options).store
    from sqs_broker.control.faults import reason_of  # A worker may lack pymongo, which this needs.

    # Celery keeps 50,000 revokes for 3 hours, but a message can live for weeks.
    state.revoked.expires = control.options.revokes_seconds
    state.revoked.maxlen = 0
    control.on_commands_open = lambda: consumer.hub.call_soon(partial(merge, *store.revoked()))
    try:
        merge(*store.revoked())
    except Exception as exc:
        # Broad on purpose: nothing in the control database may keep a worker from its tasks.
        logger.warning(
            "Could not load the revoked tasks yet: %s",
            reason_of(exc),
            extra={"event": "control.down", "error": label(exc), "reason": reason_of(exc)},
        )


def check_names(conf: Any, options: ControlOptions) -> None:
    """Raise ConfigurationError if a name in Celery's settings differs from the broker's options."""
    for name in ("event_exchange", "event_queue_prefix", "control_exchange"):
        if conf[name] != getattr(options, name):
            raise ConfigurationError(
                f"{name} is {conf[name]!r}, but {getattr(options, name)!r} in the option `control` "
                "of broker_transport_options. Make them equal."
            )


def merge(ids: list[str], stamps: list[tuple[str, str]]) -> None:
    """Add revokes to the worker's own. Called on the event loop only."""
    state.merge_revoked(ids)
    for header, stamp in stamps:
        known = state.revoked_stamps.setdefault(header, [])
        if stamp not in known:
            known.append(stamp)


def log_revoked(sender: Any = None, request: Any = None, **facts: Any) -> None:
    """Log that a task did not run, or was stopped, because it was revoked or had expired."""
    reason = "expired" if facts.get("expired") else "revoked"
    logger.info(
        "The task is %s; its message is deleted.",
        reason,
        extra={
            "event": "task.revoked",
            "task": sender.name,
            "message_id": request.id,
            "reason": reason,
        },
    )
