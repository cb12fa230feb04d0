"""The settings of Celery that the broker needs. What a project sets itself wins.

They are given once Celery reads the configuration, and only where the project says nothing. So it
does not matter whether `install` comes before or after `config_from_object`.
"""

from collections.abc import Mapping
from typing import Any

from sqs_broker.rules.policy import Policy

#: Nothing connects to this host. Without a host kombu warns and prints localhost.
URL = "sqs://amazon"

TRANSPORT = "sqs_broker:Transport"

#: Seconds by which a task ends before its lease would, if the project sets no limit.
MARGIN = 5

DEFAULTS: Mapping[str, Any] = {
    "broker_url": URL,
    "worker_consumer": "sqs_broker.worker.consumer:consumer_for",
    "worker_pool": "sqs_broker.worker.prefork:TaskPool",
    "beat_scheduler": "sqs_broker.worker.beat:Scheduler",
}

#: What no message is lost without.
RELIABLE: Mapping[str, Any] = {
    # A message is deleted only after its task has ended, so a killed worker loses no message.
    "task_acks_late": True,
    # If the process of a task dies, the message is delivered again.
    "task_reject_on_worker_lost": True,
    # A retry of Celery's own would be a new message, whose delivery count starts at one.
    "task_retry_on_worker_lost": False,
    # A failed message is retried or dead-lettered with its reason, never deleted.
    "task_acks_on_failure": False,
    "task_acks_on_timeout": False,
    # The broker decides how many messages a worker holds.
    "worker_prefetch_multiplier": 0,
    # A worker may start before its network is available.
    "broker_connection_retry_on_startup": True,
}


def give_defaults(celery_app: Any) -> None:
    """Give an app the defaults, now if its configuration was read, or else when it is."""
    if celery_app.configured:
        _set(celery_app)
        return

    def on_configured(sender: Any, **_: Any) -> None:
        _set(sender)

    celery_app.on_after_configure.connect(on_configured, weak=False)


def uses_sqs(celery_app: Any) -> bool:
    """Whether the app sends and receives through this broker: by its URL, or by its transport."""
    conf = celery_app.conf
    if conf.broker_transport and not is_sqs(conf.broker_transport):
        return bool(conf.broker_transport == TRANSPORT)
    is_named = is_sqs(conf.broker_transport or conf.broker_url)
    return is_named and hasattr(celery_app, "sqs_commands")


def is_elsewhere(celery_app: Any) -> bool:
    """Whether the app could use this broker, but its URL names another one: in tests that of
    Celery's memory."""
    return hasattr(celery_app, "sqs_commands") and not uses_sqs(celery_app)


def is_sqs(url: Any) -> bool:
    """Whether this broker is what the URL names, or the first of several URLs. `sqs` alone is the
    name that kombu's transport has in `broker_transport`. As for kombu, case does not count."""
    first = url[0] if isinstance(url, list | tuple) and url else url
    return str(first).partition(";")[0].partition(":")[0].lower() == "sqs"


def _set(celery_app: Any) -> None:
    conf = celery_app.conf
    _fill(conf, DEFAULTS)
    if not uses_sqs(celery_app):
        return
    _fill(conf, RELIABLE)
    options = conf.broker_transport_options or {}
    lease = options.get("visibility_timeout", Policy.visibility_timeout)
    if isinstance(lease, int):
        # Otherwise a task that hangs would keep its process, and its message, for ever. What is no
        # number is an error of whoever reads the options; an error here would be lost.
        _fill(conf, {"task_time_limit": max(lease - MARGIN, 1)})
    queues = options.get("predefined_queues") or {}
    if queues and not conf.value_set_for("task_queues"):
        _fill(conf, {"task_default_queue": next(iter(queues))})


def _fill(conf: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not conf.value_set_for(name):
            conf[name] = value
