"""The measured tasks in an app of stock Celery and kombu, with the settings in BENCH_STOCK."""

import json
import os

from celery import Celery
from kombu import Queue

from bench.bodies import TASKS
from bench.work import WORKS

_settings = json.loads(os.environ["BENCH_STOCK"])
_queue = next(iter(_settings["broker_transport_options"]["predefined_queues"]))

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_queues=[Queue(_queue)],
    task_default_queue=_queue,
    task_ignore_result=True,
    # Both brokers keep the same promise: what a killed worker ran, is delivered again.
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
    **_settings,
)
for _name, _function in WORKS.items():
    app.task(name=TASKS[_name])(_function)
