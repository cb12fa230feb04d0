"""Answers of one byte a second: each client of MongoDB gives up a call within its timeouts."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from time import monotonic
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.commands.database import check_database
from app.mongo import address_of, open_client
from app.probe import PROBE_TIMEOUT, Probe
from devstack.mongo import MongoServer
from sqs_broker.control.broadcast import Broadcast
from sqs_broker.control.plane import Plane
from sqs_broker.control.store import Store
from sqs_broker.options import ControlOptions
from sqs_broker.tools.checks import Level
from tests.faults import tcp
from tests.faults.tcp import TcpProxy
from tests.services import wait_until

#: Seconds for a call that is given up after `seconds`: also for a second try on another connection.
SLACK = 5

#: Seconds after which the control plane gives up one call: it selects a server, and reads.
CONTROL = 5 + 2 * 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def faults(mongo_server: MongoServer) -> Iterator[TcpProxy]:
    with tcp.running(mongo_server.port) as proxy:
        yield proxy


@pytest.fixture
def uri(faults: TcpProxy, mongo_client: MongoClient[Any]) -> Iterator[str]:
    """A URI through the proxy, of a database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    # Directly: otherwise the client would learn the address behind the proxy.
    yield f"mongodb://127.0.0.1:{faults.port}/{name}?directConnection=true"
    mongo_client.drop_database(name)


def test_a_call_of_the_tasks_ends_at_its_timeout(faults: TcpProxy, uri: str) -> None:
    with closing(open_client(f"{uri}&timeoutMS=2000")) as client:
        numbers = client["test"]["numbers"]
        numbers.insert_one({"n": 1})
        faults.drip()
        began = monotonic()
        with pytest.raises(PyMongoError):
            numbers.insert_one({"n": 2})
        assert monotonic() - began < 2 + SLACK
        faults.heal()
        numbers.insert_one({"n": 3})
        numbers.drop()


@pytest.mark.parametrize("how", [TcpProxy.drip, TcpProxy.swallow])
def test_a_client_closes_although_mongodb_does_not_answer(
    faults: TcpProxy, uri: str, how: Callable[[TcpProxy], None]
) -> None:
    # pymongo tells MongoDB of sessions and cursors, if there is a connection left for it.
    name = uri.rpartition("/")[2].partition("?")[0]
    clients = open_client(uri), Store(ControlOptions(uri=uri, database=name))
    for client in (clients[0], clients[1].client):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(client["test"].command, ["ping"] * 40))
    how(faults)
    for closing_one in clients:
        began = monotonic()
        closing_one.close()
        assert monotonic() - began < 1 + 2


def test_an_event_loop_s_client_closes_although_mongodb_does_not_answer(
    faults: TcpProxy, uri: str
) -> None:
    async def close() -> float:
        client = address_of(uri).async_client()
        await asyncio.gather(*(client["test"].command("ping") for _ in range(8)))
        faults.swallow()
        began = monotonic()
        await client.close()
        return monotonic() - began

    assert asyncio.run(close()) < 1 + 2


def test_the_probe_ends_at_its_timeout(faults: TcpProxy, uri: str) -> None:
    with closing(Probe(uri)) as probe:
        probe.find_error()
        faults.drip()
        began = monotonic()
        assert probe.find_error() is not None
        assert monotonic() - began < PROBE_TIMEOUT + SLACK


def test_doctor_ends_at_its_timeout(faults: TcpProxy, uri: str) -> None:
    faults.drip()
    began = monotonic()
    findings = list(check_database(uri))
    assert monotonic() - began < 10 + SLACK
    assert Level.FAULT in {finding.level for finding in findings}


def test_a_write_and_a_reader_of_the_control_plane_give_up_and_work_again(
    faults: TcpProxy, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    plane = Plane(ControlOptions(uri=uri, database=uri.rpartition("/")[2].partition("?")[0]))
    listener = Listener()
    try:
        plane.listen(listener)
        plane.store.broadcast([event(1)])
        wait_until(lambda: is_read(plane, listener), CONTROL, "a reader that reads")
        faults.drip()
        began = monotonic()
        with pytest.raises(PyMongoError):
            plane.store.broadcast([event(2)])
        assert monotonic() - began < CONTROL + SLACK
        wait_until(lambda: "control.down" in events(caplog), CONTROL + SLACK, "the reader's log")
        faults.heal()
        listener.read.clear()
        wait_until(lambda: is_read(plane, listener), CONTROL + SLACK, "a reader that reads again")
    finally:
        faults.heal()
        plane.close()


class Listener:
    """Takes all events."""

    exchange = "celeryev"

    def __init__(self) -> None:
        self.read: list[dict[str, Any]] = []

    def opened(self) -> None:
        """Nothing."""

    def arrived(self, document: dict[str, Any]) -> None:
        self.read.append(document)


def is_read(plane: Plane, listener: Listener) -> bool:
    """Write one more, and see whether any was read."""
    try:
        plane.store.broadcast([event(0)])
    except PyMongoError:
        return False
    return bool(listener.read)


def event(number: int) -> Broadcast:
    return Broadcast("celeryev", "task.sent", {}, f'{{"n": {number}}}')


def events(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {getattr(record, "event", "") for record in caplog.records}
