"""python -m bench.endpoints send_message|delay PORT: what one writes without a gatherer.

The same registration, checked by the same model, in FastAPI's thread pool: a call of boto3's
`send_message` for each request, or Celery's `.delay`. Neither has keys, a log line for each request
or outcomes. Listens on 127.0.0.1 only.
"""

import json
import os
import sys
import uuid
from typing import Any

import boto3
import uvicorn
from botocore.config import Config
from fastapi import FastAPI

from app.messages import Registration
from devstack import ports

#: FastAPI's own: https://anyio.readthedocs.io/en/stable/threads.html
THREADS = 40


def send_message() -> FastAPI:
    """One call to SQS for each request."""
    queue = os.environ["AWS_SQS_QUEUE_URL"]
    client = boto3.client("sqs", config=Config(max_pool_connections=THREADS))
    api = FastAPI()

    @api.post("/registrations", status_code=202)
    def register(registration: Registration) -> dict[str, Any]:
        id_ = uuid.uuid4().hex
        data = registration.model_dump(exclude_unset=True)
        body = json.dumps({"id": id_, "action": "registerUser", "data": data})
        client.send_message(QueueUrl=queue, MessageBody=body)
        return {"id": id_, "state": "pending"}

    return api


def delay() -> FastAPI:
    """`register_user.delay` for each request."""
    from app.tasks import register_user

    api = FastAPI()

    @api.post("/registrations", status_code=202)
    def register(registration: Registration) -> dict[str, Any]:
        result = register_user.delay(**registration.model_dump(exclude_unset=True))
        return {"id": result.id, "state": "pending"}

    return api


WAYS = {"send_message": send_message, "delay": delay}


if __name__ == "__main__":
    uvicorn.run(
        WAYS[sys.argv[1]](),
        host=ports.HOST,
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
    )
