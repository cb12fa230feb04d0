"""Amazon SQS as a Celery broker that keeps its promises: nothing lost, doubled or stuck.

    from sqs_broker import install

    app = Celery("mine")
    install(app)
    app.conf.broker_transport_options = {
        "region": "eu-central-1",
        "predefined_queues": {"jobs": {"url": "https://…", "dead_letter_url": "https://…"}},
    }

Importing it loads neither Celery nor boto3: Celery loads each part when it needs it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqs_broker.errors import (
    ConfigurationError,
    MessageTooLarge,
    PublishError,
    Undecodable,
    UnknownQueue,
)
from sqs_broker.rules.foreign import ForeignMessage

if TYPE_CHECKING:
    from sqs_broker.worker.transport import Transport

__all__ = [
    "ConfigurationError",
    "ForeignMessage",
    "MessageTooLarge",
    "PublishError",
    "Transport",
    "Undecodable",
    "UnknownQueue",
    "install",
]


def install(celery_app: Any, commands: Sequence[str] = ()) -> None:
    """Make a Celery app use this broker. Reads no configuration and opens nothing.

    Call it before the app's first task is used. If the app has a task class of its own, that must
    be a subclass of `sqs_broker.worker.task.Task`; otherwise that class is set. `commands` names
    click commands of the app ("package.module:command") which `celery -A … sqs` has beside ours.
    """
    from celery.app.task import Task as CeleryTask

    # `sqs_broker.worker.task` makes Celery import its worker only where a task is defined.
    if celery_app.task_cls in ("celery.app.task:Task", CeleryTask):
        celery_app.task_cls = "sqs_broker.worker.task:Task"
    celery_app.events_cls = "sqs_broker.control.dispatcher:Events"
    celery_app.sqs_commands = tuple(commands)
    celery_app.conf.update(
        # A host that is never asked: without one kombu warns and prints localhost.
        broker_url="sqs://amazon",
        broker_transport="sqs_broker:Transport",
        worker_consumer="sqs_broker.worker.consumer:Consumer",
        worker_pool="sqs_broker.worker.prefork:TaskPool",
        beat_scheduler="sqs_broker.worker.beat:Scheduler",
    )
    celery_app.steps["consumer"].add("sqs_broker.worker.health:HealthFile")


def __getattr__(name: str) -> Any:
    if name == "Transport":
        from sqs_broker.worker.transport import Transport

        return Transport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
