"""Amazon SQS as a Celery broker: no message is lost, counted twice or stuck.

    from sqs_broker import install

    app = Celery("mine")
    install(app)
    app.conf.broker_transport_options = {
        "region": "eu-central-1",
        "predefined_queues": {"jobs": {"url": "https://…", "dead_letter_url": "https://…"}},
    }

The import loads neither Celery nor boto3: Celery imports each module when it needs it. `sqs-health`
(sqs_broker/tools/health.py) needs nothing of it at all, so each name is imported when it is used.
"""

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqs_broker.errors import (
        ConfigurationError,
        EtaTooFar,
        InvalidArguments,
        MessageTooLarge,
        PublishError,
        Undecodable,
        UnknownQueue,
    )
    from sqs_broker.rules.foreign import ForeignMessage
    from sqs_broker.sqs.batching import batching
    from sqs_broker.sqs.errors import SqsError
    from sqs_broker.sqs.publisher import Published, publish_many
    from sqs_broker.sqs.sender import BatchError, SendError
    from sqs_broker.worker.transport import Transport

__all__ = [
    "BatchError",
    "ConfigurationError",
    "EtaTooFar",
    "ForeignMessage",
    "InvalidArguments",
    "MessageTooLarge",
    "PublishError",
    "Published",
    "SendError",
    "SqsError",
    "Transport",
    "Undecodable",
    "UnknownQueue",
    "batching",
    "install",
    "preload",
    "publish_many",
]

#: The module of each name that is imported only when it is used.
LATE = {
    "BatchError": "sqs_broker.sqs.sender",
    "ConfigurationError": "sqs_broker.errors",
    "EtaTooFar": "sqs_broker.errors",
    "ForeignMessage": "sqs_broker.rules.foreign",
    "InvalidArguments": "sqs_broker.errors",
    "MessageTooLarge": "sqs_broker.errors",
    "PublishError": "sqs_broker.errors",
    "Published": "sqs_broker.sqs.publisher",
    "SendError": "sqs_broker.sqs.sender",
    "SqsError": "sqs_broker.sqs.errors",
    "Transport": "sqs_broker.worker.transport",
    "Undecodable": "sqs_broker.errors",
    "UnknownQueue": "sqs_broker.errors",
    "batching": "sqs_broker.sqs.batching",
    "publish_many": "sqs_broker.sqs.publisher",
}


def install(
    celery_app: Any,
    commands: Sequence[str] = (),
    checks: Sequence[str] = (),
    traces: Sequence[str] = (),
) -> None:
    """Make a Celery app use this broker. Reads no configuration and opens no connection.

    Call it before you use the app's first task; after that it raises ConfigurationError. Tasks may
    have any class: each gets the broker's behaviour too (sqs_broker/worker/mixing.py). A setting of
    Celery that the app sets itself wins (sqs_broker/worker/defaults.py); with a `broker_url` that
    does not begin with `sqs:`, the app uses that broker.
    `commands` lists click commands of the app ("package.module:command") to add to
    `celery -A … sqs`. `checks` lists functions of the app ("package.module:function") that
    `celery -A … sqs doctor` runs after its own checks. Each takes the Celery app and returns an
    iterable of `sqs_broker.tools.checks.Finding`. `traces` lists functions of the app that
    `celery -A … sqs trace` asks. Each takes the Celery app and the id of a message, and returns an
    iterable of `sqs_broker.tools.trace.Fact`.
    """
    from celery.app.task import Task as CeleryTask

    from sqs_broker.errors import ConfigurationError
    from sqs_broker.worker.defaults import give_defaults
    from sqs_broker.worker.mixing import adopt

    if celery_app.finalized:
        raise ConfigurationError(
            "install(app) was called after a task of the app was used. Call it right after the app "
            "is created, before any task is sent or looked up."
        )
    adopt(celery_app)
    # Set by name, so that Celery imports that module, and its own worker with it, only once a task
    # is defined.
    if celery_app.task_cls in ("celery.app.task:Task", CeleryTask):
        celery_app.task_cls = "sqs_broker.worker.task:Task"
    if celery_app.amqp_cls == "celery.app.amqp:AMQP":
        celery_app.amqp_cls = "sqs_broker.worker.amqp:AMQP"
    celery_app.events_cls = "sqs_broker.control.dispatcher:Events"
    celery_app.sqs_commands = tuple(commands)
    celery_app.sqs_checks = tuple(checks)
    celery_app.sqs_traces = tuple(traces)
    give_defaults(celery_app)
    if _is_flower():
        from sqs_broker.tools.flower import pages

        pages.install()
    celery_app.steps["worker"].add("sqs_broker.tools.startup:StartChecks")
    celery_app.steps["consumer"] |= {
        "sqs_broker.worker.health:Health",
        "sqs_broker.worker.metrics:Metrics",
        "sqs_broker.worker.pausing:Pausing",
    }


def _is_flower() -> bool:
    """Whether this process is `celery -A … flower`."""
    import click

    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().invoked_subcommand == "flower"


def preload() -> None:
    """Load the libraries that a message needs on its way to SQS: boto3 and libcurl.

    It takes a tenth of a second. A program that does not call it pays that in its first `.delay`,
    which in a web server is a request. Reads no configuration and opens no connection.
    """
    import_module("sqs_broker.sqs.boto")
    # Without pycurl, boto3 sends (sqs_broker/sqs/drivers.py).
    with suppress(ImportError):
        import_module("sqs_broker.sqs.curl")


def __getattr__(name: str) -> Any:
    if name in LATE:
        return getattr(import_module(LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
