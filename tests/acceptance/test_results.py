"""With a result backend of Celery's, MongoDB: results, results of groups, and chords."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chord, group

from sqs_broker import install
from tests.acceptance.typed import SECONDS, Typed
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def client(tmp_path: Path, queues: Queues, mongo_uri: str) -> Iterator[Celery]:
    """A program that calls tasks of a worker, and waits for their results."""
    typed = Typed(tmp_path, queues)
    typed.write(
        "after.py",
        f'app.conf.result_backend = "{mongo_uri}"',
        'app.conf.broker_transport_options |= {"backoff_base": 0.01, "wait_time_seconds": 1}',
        "app.conf.result_chord_retry_interval = 0.5",
        '@app.task(name="shop.total")',
        "def total(numbers): return sum(numbers)",
        '@app.task(name="shop.fail")',
        'def fail(): raise KeyError("no such shop")',
    )
    client = Celery("client", set_as_current=False)
    install(client)
    client.conf.update(
        result_backend=mongo_uri,
        broker_transport_options={
            "region": queues.region,
            "endpoint_url": queues.endpoint_url,
            "credentials": {"aws_access_key_id": "test", "aws_secret_access_key": "test"},
            "predefined_queues": {"jobs": {"url": queues.url}},
        },
        task_default_queue="jobs",
        task_create_missing_queues=False,
    )
    with typed.worker("after", "--pool", "threads", "-c", "4"):
        yield client
    # Celery leaves it open, and Python would complain in the middle of a later test.
    client.backend.database.client.close()
    client.close()


def test_results_come_back(client: Celery, queues: Queues) -> None:
    def add(x: int, y: int) -> Any:
        return client.signature("shop.add", (x, y))

    assert client.send_task("shop.add", (1, 2)).get(timeout=SECONDS) == 3

    failed = client.send_task("shop.fail")
    with pytest.raises(KeyError, match="no such shop"):
        failed.get(timeout=SECONDS)
    # Another program asks by the id.
    assert client.AsyncResult(failed.id).state == "FAILURE"

    assert group([add(1, 1), add(2, 2)], app=client)().get(timeout=SECONDS) == [2, 4]

    total = client.signature("shop.total")
    assert chord([add(n, n) for n in range(5)], total, app=client)().get(timeout=SECONDS) == 20

    wait_until(queues.is_empty, 30, "an empty queue")
    assert len(queues.dead_letters()) == 1
