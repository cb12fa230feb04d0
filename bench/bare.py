"""python -m bench.bare message|batch: no framework, only the calls: the practical limit.

Eight threads; each receives ten, works, and deletes ten in one call. With `message` the work is
done once for each message, with `batch` there is one bulk write for the ten.
"""

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from bench.work import WORKS, register_many

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

THREADS = 8
BATCH = 10


def main(way: str, task: str) -> None:
    """Work until the process is killed."""
    client = boto3.client(
        "sqs",
        region_name=os.environ["AWS_REGION"],
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        config=Config(max_pool_connections=THREADS),
    )
    for _ in range(THREADS):
        threading.Thread(
            target=_loop, args=(client, os.environ["AWS_SQS_QUEUE_URL"], way, task)
        ).start()


def _loop(client: "SQSClient", url: str, way: str, task: str) -> None:
    while True:
        answer = client.receive_message(QueueUrl=url, MaxNumberOfMessages=BATCH, WaitTimeSeconds=20)
        if messages := answer.get("Messages"):
            _work(way, task, [json.loads(message["Body"])["data"] for message in messages])
            entries: Any = [
                {"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]}
                for n, message in enumerate(messages)
            ]
            client.delete_message_batch(QueueUrl=url, Entries=entries)


def _work(way: str, task: str, users: list[dict[str, Any]]) -> None:
    if way == "batch":
        register_many(users)
        return
    for user in users:
        WORKS[task](**user)


if __name__ == "__main__":
    main(sys.argv[1], os.environ["BENCH_TASK"])
