"""The control plane in a worker: it hears of every revoke before it takes a message."""

import logging
from functools import partial
from typing import Any

from celery import signals
from celery.worker import state

from sqs_broker.control import commands as commands  # Celery finds them once they are imported.
from sqs_broker.control.planes import plane_for
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import ControlOptions

logger = logging.getLogger(__name__)


def attach(consumer: Any) -> None:
    """Load what was revoked, now and whenever commands are heard again after an outage.

    For Celery's consumer, before the loop delivers its first message.
    """
    mailbox = consumer.connection.transport.mailbox
    check_names(consumer.app.conf, mailbox.options)
    signals.task_revoked.connect(log_revoked)
    if mailbox.options.uri is None:
        logger.info("No control plane is configured.", extra={"event": "control.none"})
        return
    store = plane_for(mailbox.options).store
    from pymongo.errors import PyMongoError  # A worker without a control plane may lack it.

    # Celery forgets a revoke after 3 hours, and holds 50,000; a message lives for weeks.
    state.revoked.expires = mailbox.options.revokes_seconds
    state.revoked.maxlen = 0
    mailbox.on_commands_heard = lambda: consumer.hub.call_soon(partial(merge, *store.revoked()))
    try:
        merge(*store.revoked())
    except PyMongoError as exc:
        logger.warning(
            "What was revoked is not known yet: MongoDB does not answer (%s).",
            type(exc).__name__,
            extra={"event": "control.down", "error": type(exc).__name__},
        )


def check_names(conf: Any, options: ControlOptions) -> None:
    """Raise ConfigurationError where Celery's settings name what the broker does not know."""
    for name in ("event_exchange", "event_queue_prefix", "control_exchange"):
        if conf[name] != getattr(options, name):
            raise ConfigurationError(
                f"{name} is {conf[name]!r}, but {getattr(options, name)!r} in the option `control` "
                "of broker_transport_options. Make them equal."
            )


def merge(ids: list[str], stamps: list[tuple[str, str]]) -> None:
    """Add revokes to those the worker knows. On the loop only."""
    state.merge_revoked(ids)
    for header, stamp in stamps:
        known = state.revoked_stamps.setdefault(header, [])
        if stamp not in known:
            known.append(stamp)


def log_revoked(sender: Any = None, request: Any = None, **facts: Any) -> None:
    """Say that a task was not run, or was stopped, because it was revoked or its time was over."""
    reason = "expired" if facts.get("expired") else "revoked"
    logger.info(
        "The task is %s; its message is done.",
        reason,
        extra={
            "event": "task.revoked",
            "task": sender.name,
            "message_id": request.id,
            "reason": reason,
        },
    )
