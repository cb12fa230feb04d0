"""Whatever clients send, the API's process stays well."""

import asyncio
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.api.keys import Scope, new_key
from tests.acceptance.api_process import Api, apis
from tests.acceptance.worker import Place
from tests.faults.requests import attack
from tests.services import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3_000)]

#: Requests of a run, and of one by hand: `make verify ARGS="--long -k api_fuzz"`. A tenth of them
#: comes first, since caches and buffers have their size after it.
REQUESTS, LONG_REQUESTS = 2_000, 200_000
SEED = 20_261_127
#: What the process may have more than after the first tenth: its heap has holes, and its pools of
#: threads and of connections to MongoDB and SQS grow until they suffice.
MORE_MIB, MORE = 16, 12
#: Answers that say that the program has a fault. No call to SQS fails here.
FAULTS = {"500", "502", "503", "504"}

#: With it, a close resets the connection.
NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Size:
    """What a process uses."""

    mib: float
    descriptors: int
    threads: int


def size_of(api: Api) -> Size:
    process = Path(f"/proc/{api.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Size(
        int(status["VmRSS"].split()[0]) / 1024,
        len(list((process / "fd").iterdir())),
        int(status["Threads"]),
    )


@pytest.fixture
def key() -> tuple[str, str]:
    """A key that may do everything, and its entry for API_KEYS."""
    return new_key("fuzz", list(Scope))


@pytest.fixture
def api(where: Place, key: tuple[str, str], tmp_path: Path) -> Iterator[Api]:
    """An API that asks for keys."""
    with apis(tmp_path) as start:
        yield start({**where.environment, "API_KEYS": key[1]})


def test_after_many_broken_requests_the_process_is_as_before(
    api: Api, key: tuple[str, str], pytestconfig: pytest.Config
) -> None:
    requests = LONG_REQUESTS if pytestconfig.getoption("--long") else REQUESTS
    asyncio.run(attack(api.port, key[0], requests // 10, SEED + 1))
    before = settled(api)
    answers = asyncio.run(attack(api.port, key[0], requests, SEED))
    after = settled(api)
    sys.stdout.write(f"{dict(answers)}\n{before}\n{after}\n")

    assert not FAULTS & set(answers), answers
    assert {"202", "400", "401", "404", "405", "413", "415", "431"} <= set(answers)
    assert not api.log_lines("http.failed")
    assert api.get("/count", X_API_Key=key[0]).status == 200
    user = {"stockId": "fuzz", "userId": "last", "userInfo": {"nickname": "kim"}}
    assert api.post("/registrations", user, X_API_Key=key[0]).status == 202
    assert after.descriptors < before.descriptors + MORE
    assert after.threads < before.threads + MORE
    assert after.mib < before.mib + MORE_MIB


def test_what_a_client_asked_is_forgotten_once_it_has_reset_its_connection(
    api: Api,
) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

    def reset(count: int) -> None:
        for _ in range(count):
            with socket.create_connection(("127.0.0.1", api.port), timeout=30) as connection:
                connection.sendall(ask)
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    reset(200)
    before = settled(api)
    reset(1_000)
    # Those of the last 75 seconds would be 9 MiB.
    assert settled(api).mib < before.mib + 6


def settled(api: Api) -> Size:
    """What it uses once the connections of clients are closed."""
    wait_until(lambda: not api.connections(), 60, "closed connections")
    assert api.get("/healthz").status == 200
    wait_until(lambda: not api.connections(), 60, "a closed connection")
    return size_of(api)
