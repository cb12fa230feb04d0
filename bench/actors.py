"""The measured tasks as actors of dramatiq, on the queue that BENCH_QUEUE names."""

import os

import dramatiq
from dramatiq_sqs import SQSBroker

from bench.work import WORKS

broker = SQSBroker(
    visibility_timeout=60,
    region_name=os.environ["AWS_REGION"],
    endpoint_url=os.environ["AWS_ENDPOINT_URL"],
)
dramatiq.set_broker(broker)
for _name, _function in WORKS.items():
    dramatiq.actor(actor_name=_name, queue_name=os.environ["BENCH_QUEUE"])(_function)
