"""A task that has a retry of its own, which no worker of this broker may run."""

import json
import os

from celery import Celery, Task

from sqs_broker import install

app = Celery("refused")
install(app)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])


class OwnRetry(Task):
    """Has its own idea of a retry."""

    def retry(self, *args, **kwargs):
        raise RuntimeError


@app.task(base=OwnRetry)
def job():
    """Never runs."""
