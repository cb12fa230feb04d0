"""The largest batch that the HTTP API takes, uploaded in chunks of unknown number."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.api.batch import MOST_ITEMS
from app.api.bodies import MOST_LINES
from tests.acceptance.api_process import NDJSON, Api, Reply, StartApi, apis, reply_of
from tests.acceptance.worker import Place

pytestmark = pytest.mark.slow

#: MiB that the process may have more for 64 times the bytes: what is on its way to SQS, and a heap
#: with holes.
MORE_MIB = 32


@pytest.fixture
def start_api(tmp_path: Path) -> Iterator[StartApi]:
    with apis(tmp_path) as start:
        yield start


def lines(size: int) -> Iterator[bytes]:
    """The lines of a batch of as many items as one may have, and of nearly `size` bytes."""
    for n in range(MOST_ITEMS):
        user = {"stockId": "large", "userId": f"u{n}", "userInfo": {"nickname": "kim"}}
        line = json.dumps(user).encode()
        yield line[:-1] + b', "x": "' + b"y" * (size // MOST_ITEMS - len(line) - 10) + b'"}\n'


def uploaded(api: Api, size: int) -> Reply:
    """The answer to a batch. Without a Content-Length, each part is a chunk."""
    connection = api.connect()
    try:
        connection.request("POST", "/registrations/batch", lines(size), {"Content-Type": NDJSON})
        return reply_of(connection)
    finally:
        connection.close()


def most_mib(api: Api) -> float:
    """The most memory that the process has had."""
    status = Path(f"/proc/{api.pid}/status").read_text()
    found = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(found.split()[1]) / 1024


def test_the_memory_of_the_process_does_not_grow_with_the_bytes_of_a_batch(
    where: Place, start_api: StartApi
) -> None:
    api = start_api(where.environment)
    small = uploaded(api, MOST_LINES // 64)
    before = most_mib(api)
    large = uploaded(api, MOST_LINES)
    after = most_mib(api)
    assert (small.status, small.json()["accepted"]) == (202, MOST_ITEMS)
    assert (large.status, large.json()["accepted"]) == (202, MOST_ITEMS)
    ids = [item["id"] for item in large.json()["items"]]
    assert len(set(ids)) == MOST_ITEMS
    assert after < before + MORE_MIB, f"{before:.0f} MiB, then {after:.0f} MiB"
    where.queues.client.purge_queue(QueueUrl=where.queues.url)
