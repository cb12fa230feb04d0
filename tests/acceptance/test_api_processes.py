"""The HTTP API with API_PROCESSES=2: real processes, one of which is stopped or killed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.acceptance.api_process import NDJSON, Api, apis, drained, lines, user
from tests.acceptance.worker import Place, living
from tests.faults import proxy
from tests.faults.proxy import FaultProxy
from tests.services import wait_until

pytestmark = pytest.mark.slow

SEND = "SendMessageBatch"
COUNT = 2


@pytest.fixture(scope="module")
def faults(where: Place) -> Iterator[FaultProxy]:
    """A proxy in front of the SQS server."""
    with proxy.running(where.queues.endpoint_url) as (made, _):
        yield made


@contextmanager
def running(where: Place, faults: FaultProxy, home: Path) -> Iterator[Api]:
    """An API whose COUNT processes take connections."""
    own = {"AWS_ENDPOINT_URL": faults.url, "API_PROCESSES": str(COUNT)}
    with apis(home) as start:
        api = start({**where.environment, **own})
        api.wait_for(lambda: len(api.log_lines("api.started")) == COUNT, 60, "all processes")
        yield api


@pytest.fixture(scope="module")
def lasting(
    where: Place, faults: FaultProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    """An API that the tests do not stop."""
    with running(where, faults, tmp_path_factory.mktemp("lasting")) as api:
        yield api


@pytest.fixture
def api(where: Place, faults: FaultProxy, tmp_path: Path) -> Iterator[Api]:
    """An API for one test, which may stop it."""
    with running(where, faults, tmp_path) as api:
        yield api


def serving(api: Api) -> list[int]:
    """The processes that take connections now."""
    children = {pid for pid, parent, _ in living() if parent == api.pid}
    return [line["pid"] for line in api.log_lines("api.started") if line["pid"] in children]


def sockets(pid: int) -> int:
    """How many sockets a process has."""
    links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(link.startswith("socket:") for link in links)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
        return False


def test_connections_are_spread_over_the_processes(lasting: Api) -> None:
    api = lasting
    before = {pid: sockets(pid) for pid in serving(api)}
    connections = [api.connect() for _ in range(100)]
    for connection in connections:
        connection.connect()
    for connection in connections:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
    taken = [sockets(pid) - before[pid] for pid in before]
    assert sum(taken) >= 100
    # A fair coin shows one side less than 20 times of 100 once in a billion.
    assert min(taken) > 20
    assert sockets(api.pid) == COUNT
    for connection in connections:
        connection.close()


def to_the_first(api: Api) -> None:
    os.kill(api.pid, signal.SIGTERM)


def to_the_group(api: Api) -> None:
    os.killpg(api.pid, signal.SIGTERM)


def as_ctrl_c(api: Api) -> None:
    os.killpg(api.pid, signal.SIGINT)


def kill_the_first(api: Api) -> None:
    os.kill(api.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("stop", "status"),
    [(to_the_first, 0), (to_the_group, 0), (as_ctrl_c, 0), (kill_the_first, -signal.SIGKILL)],
)
def test_however_it_is_stopped_no_request_is_cut_off_and_the_port_is_free(
    where: Place, api: Api, faults: FaultProxy, stop: Callable[[Api], None], status: int
) -> None:
    port = api.port
    faults.hold(SEND)
    with ThreadPoolExecutor(50) as clients:
        batch = clients.submit(
            lambda: api.post("/registrations/batch", lines("stop-batch", 300), NDJSON)
        )
        singles = [
            clients.submit(lambda n=n: api.post("/registrations", user("stop", n)))
            for n in range(40)
        ]
        wait_until(lambda: faults.is_holding(SEND), 30, "a call")
        # All are in the processes: they have taken their connections.
        wait_until(lambda: api.connections() >= 41, 30, "all connections")
        stop(api)
        wait_until(lambda: len(api.log_lines("api.stopping")) == COUNT, 30, "the stop")
        faults.let_go(SEND)
        answers = [single.result(60) for single in singles]
        assert [answer.status for answer in answers] == [202] * 40
        assert batch.result(60).json()["accepted"] == 300
    assert api.wait(60) == status
    wait_until(lambda: not api.processes(), 60, "the end of all processes")
    assert is_free(port)
    ids = {body["id"] for body in drained(where)}
    assert {answer.json()["id"] for answer in answers} <= ids
    assert len(ids) == 340


def test_a_killed_process_is_replaced_and_what_it_accepted_is_on_the_queue(
    where: Place, lasting: Api, faults: FaultProxy
) -> None:
    api = lasting
    victim, other = serving(api)
    accepted: list[str] = []
    failed: list[int] = []

    def register(n: int) -> None:
        try:
            answer = api.post("/registrations", user("killed", n))
        except (OSError, HTTPException):
            failed.append(n)
            return
        assert answer.status == 202
        accepted.append(answer.json()["id"])

    before = faults.calls[SEND]
    with ThreadPoolExecutor(20) as clients:
        all_of_them = [clients.submit(register, n) for n in range(600)]
        wait_until(lambda: faults.calls[SEND] > before + 10, 60, "ten calls")
        os.kill(victim, signal.SIGKILL)
        for one in all_of_them:
            one.result(60)
    now = api.wait_for(lambda: len(serving(api)) == COUNT and serving(api), 60, "another process")
    (line,) = [line for line in api.log_lines("api.process_ended") if line["pid"] == victim]
    assert line["reason"] == "signal 9"
    assert victim not in now
    assert other in now
    # Those whose connection the victim had may be repeated.
    for n in tuple(failed):
        register(n)
    assert len(set(accepted)) == 600
    assert set(accepted) <= {body["id"] for body in drained(where)}


def test_connections_that_a_killed_process_has_not_taken_wait_for_the_next(lasting: Api) -> None:
    victim = serving(lasting)[0]
    os.kill(victim, signal.SIGSTOP)
    connections = [lasting.connect() for _ in range(40)]
    for connection in connections:
        connection.request("GET", "/healthz")
    os.kill(victim, signal.SIGKILL)
    assert {connection.getresponse().status for connection in connections} == {200}
    for connection in connections:
        connection.close()
    lasting.wait_for(lambda: len(serving(lasting)) == COUNT, 60, "another process")


def test_two_apis_do_not_share_a_port(lasting: Api, where: Place) -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "app.api"],
        env={**where.environment, "API_PORT": str(lasting.port), "API_PROCESSES": str(COUNT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode == 1
    (line,) = outcome.stderr.strip().splitlines()
    assert "API_PORT" in line


def test_at_a_second_ctrl_c_all_end_at_once(api: Api, faults: FaultProxy) -> None:
    faults.hold(SEND)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(api.post, "/registrations", user("ctrl-c", 1))
        wait_until(lambda: faults.is_holding(SEND), 30, "a call")
        os.killpg(api.pid, signal.SIGINT)
        wait_until(lambda: len(api.log_lines("api.stopping")) == COUNT, 30, "the stop")
        os.killpg(api.pid, signal.SIGINT)
        assert api.wait(30) == 0
        assert isinstance(waiting.exception(30), OSError | HTTPException)
    assert not api.processes()
    faults.let_go(SEND)
