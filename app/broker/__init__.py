"""Amazon SQS as a Celery broker that keeps its promises: nothing lost, doubled or stuck.

    from app.broker import install

    app = Celery("mine")
    install(app)
    app.conf.broker_transport_options = {
        "region": "eu-central-1",
        "predefined_queues": {"jobs": {"url": "https://…", "dead_letter_url": "https://…"}},
    }

It imports nothing of the application around it.
"""

from typing import Any

from app.broker.errors import ConfigurationError, MessageTooLarge, PublishError, UnknownQueue
from app.broker.errors import Undecodable as Undecodable
from app.broker.options import ForeignMessage as ForeignMessage
from app.broker.transport import Transport as Transport

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


def install(celery_app: Any) -> None:
    """Make a Celery app use this broker. Reads no configuration and opens nothing.

    Call it before the app's first task is used. A task class set on the app before must be a
    subclass of `app.broker.task.Task`; without one, that is set.
    """
    from celery.app.task import Task as CeleryTask

    # `app.broker.task` makes Celery import its worker only where a task is defined.
    if celery_app.task_cls in ("celery.app.task:Task", CeleryTask):
        celery_app.task_cls = "app.broker.task:Task"
    celery_app.events_cls = "app.broker.mailbox.dispatcher:Events"
    celery_app.conf.update(
        # A host that is never asked: without one kombu warns and prints localhost.
        broker_url="sqs://amazon",
        broker_transport="app.broker:Transport",
        worker_consumer="app.broker.consumer:Consumer",
        worker_pool="app.broker.prefork:TaskPool",
        beat_scheduler="app.broker.beat:Scheduler",
    )
    celery_app.steps["consumer"].add("app.broker.health:HealthFile")
