"""The same two tasks in an app of stock Celery and kombu, with the best settings that they have.

Each effect is a write without a key of its own, as Celery gives a task none: so what ran twice is
counted twice, where this project would find that it was there.
"""

import json
import os
from datetime import UTC, datetime
from functools import cache
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from pymongo import MongoClient
from pymongo.database import Database

_settings = json.loads(os.environ["CHAOS_STOCK"])
_queue = _settings["queue"]

app = Celery("chaos", broker=_settings["broker"])
app.conf.update(
    broker_transport_options=_settings["transport"],
    task_queues=[Queue(_queue, Exchange(""), routing_key=_queue)],
    task_default_queue=_queue,
    task_default_exchange="",
    task_default_routing_key=_queue,
    task_create_missing_queues=False,
    task_ignore_result=True,
    # Nothing is deleted before it has run, nor because its process died.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_acks_on_failure_or_timeout=False,
    task_soft_time_limit=_settings["soft_time_limit"],
    task_time_limit=_settings["time_limit"],
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
)

#: A failure that may pass is tried again, for ever.
_RETRIES: dict[str, Any] = {
    "autoretry_for": (Exception,),
    "max_retries": None,
    "retry_backoff": True,
    "retry_backoff_max": 4,
}


@cache
def _database() -> Database[dict[str, Any]]:
    # Made at the first task, so in the pool's process and never before a fork.
    client = MongoClient[dict[str, Any]](os.environ["MONGO_URI"])
    return client.get_default_database()


@app.task(bind=True, name="registerUser", **_RETRIES)
def register_user(self: Any, **fields: Any) -> None:
    """Store a user."""
    _database()["users"].insert_one(
        {"message_id": self.request.id, "at": datetime.now(UTC), **fields}
    )


@app.task(bind=True, name="increment", **_RETRIES)
def increment(self: Any, **fields: Any) -> None:
    """Store an input."""
    _database()["increments"].insert_one(
        {"message_id": self.request.id, "at": datetime.now(UTC), **fields}
    )
