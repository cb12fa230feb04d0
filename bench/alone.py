"""The measured tasks in a project that has only the broker, `sqs_broker`, as docs/options.md says.

The visibility timeout is BENCH_VISIBILITY. Tasks have no time limit.
"""

import os

from celery import Celery
from kombu import Exchange, Queue

from bench.bodies import TASKS
from bench.work import WORKS
from sqs_broker import install

_url = os.environ["AWS_SQS_QUEUE_URL"]
_queue = _url.rsplit("/", 1)[-1]
_visibility = int(os.environ["BENCH_VISIBILITY"])

app = Celery("alone")
install(app)
app.conf.update(
    broker_transport_options={
        "region": os.environ["AWS_REGION"],
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "visibility_timeout": _visibility,
        "wait_time_seconds": min(20, _visibility // 3),
        "max_receive_count": int(os.environ["BENCH_RECEIVES"]),
        # Three deliveries are spare: those of workers that stop.
        "max_attempts": max(1, int(os.environ["BENCH_RECEIVES"]) - 3),
        "predefined_queues": {
            _queue: {"url": _url, "dead_letter_url": os.environ["AWS_SQS_DLQ_URL"]}
        },
    },
    task_queues=[Queue(_queue, Exchange(""), routing_key=_queue)],
    task_default_queue=_queue,
    task_default_exchange="",
    task_default_routing_key=_queue,
    task_create_missing_queues=False,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # Longer than the lease, which is extended meanwhile: that is what is compared.
    task_time_limit=120,
    task_soft_time_limit=110,
    task_acks_on_failure=False,
    task_acks_on_timeout=False,
    task_ignore_result=True,
    worker_prefetch_multiplier=0,
)
for _name, _function in WORKS.items():
    app.task(name=TASKS[_name])(_function)
