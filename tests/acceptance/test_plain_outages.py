"""MongoDB goes away while a job of plain messages runs, again and again, in another way each time:
none of its messages pays for it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pymongo.errors import AutoReconnect, ExecutionTimeout

from tests.acceptance.lane import Lane, failing_inserts, lanes
from tests.acceptance.worker import Place
from tests.deployments import deployment
from tests.deployments.deployment import Deployment
from tests.faults import tcp
from tests.faults.tcp import TcpProxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: The worker's clients hear of a MongoDB that is away within a time limit.
TIMEOUTS = {"serverSelectionTimeoutMS": 1_000, "timeoutMS": 2_000}

#: Seconds of the soft limit. A job fails when the client gives up, long before.
SOFT = 15

#: Milliseconds of a write, in which MongoDB goes away.
LONG = 1_500

#: MongoDB's code if its disk is full.
FULL = 14_031


class Mongo:
    """One server, with a proxy in front of it."""

    def __init__(self, there: Deployment, way: TcpProxy, name: str) -> None:
        self.there = there
        self.way = way
        self.name = name

    @contextmanager
    def slow_writes(self, **how: object) -> Iterator[Callable[[], bool]]:
        """Writes of users take long, and end as the fail point says. Yields what says whether one
        has begun: then the job runs. MongoDB ends the block once none is under way."""
        client = self.there.client()

        def has_begun() -> bool:
            with suppress(ExecutionTimeout):
                wanted = {"timesEntered": entered + 1, "maxTimeMS": 1_000}
                client.admin.command("waitForFailPoint", "failCommand", **wanted)
                return True
            return False

        slow = {"blockConnection": True, "blockTimeMS": LONG}
        with failing_inserts(client, self.name, **slow, **how) as entered:
            yield has_begun

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """As its writes end."""
        yield

    @contextmanager
    def without_primary(self) -> Iterator[None]:
        """It is a secondary, and alone."""
        with suppress(AutoReconnect):  # It closes connections.
            self.there.client(0).admin.command(
                "replSetStepDown", 60, secondaryCatchUpPeriodSecs=0, force=True
            )
        yield
        self.there.client(0).admin.command("replSetFreeze", 0)
        self.there.wait_for_primary()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        self.way.refuse()
        yield
        self.way.heal()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.there.stop(0)
        yield
        self.there.start(0)
        self.there.wait_for_primary()


@pytest.fixture(scope="module")
def mongo(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongo]:
    with ExitStack() as stack:
        ways: list[TcpProxy] = []

        def front(port: int) -> int:
            ways.append(stack.enter_context(tcp.running(port)))
            return ways[-1].port

        # With TLS the member tells its clients the address of the proxy.
        directory = tmp_path_factory.mktemp("mongo")
        there = stack.enter_context(deployment.running(directory, front=front, tls=True))
        yield Mongo(there, ways[0], where.database.name)


@pytest.fixture
def lane(where: Place, mongo: Mongo, tmp_path: Path) -> Iterator[Lane]:
    client, uri = (
        mongo.there.client(),
        mongo.there.uri(mongo.name, directConnection=True, **TIMEOUTS),
    )
    given = replace(
        where, environment={**where.environment, "MONGO_URI": uri}, database=client[mongo.name]
    )
    limits = {"TASK_SOFT_TIME_LIMIT": str(SOFT), "TASK_TIME_LIMIT": str(SOFT + 5)}
    with lanes(given, client, tmp_path / "one", **limits) as made:
        yield made


def test_a_job_that_meets_outages_of_each_kind_costs_no_message_an_attempt(
    lane: Lane, mongo: Mongo
) -> None:
    ids: list[str] = []
    # Each with how writes end meanwhile.
    kinds = [
        ({"errorCode": FULL}, mongo.refusing()),
        ({}, mongo.without_primary()),
        ({}, mongo.cut_off()),
        ({}, mongo.stopped()),
    ]
    for times, (how, outage) in enumerate(kinds, 1):
        with mongo.slow_writes(**how) as has_begun:
            # Later they come back by themselves.
            ids = ids or lane.send_together("away")
            lane.wait_for(has_begun, "a write")
            with outage:
                wait_for(lane, "outage.begins", times)
                wait_for_releases(lane, ids, times)
        wait_for(lane, "outage.ends", times)
    lane.assert_each_is_done_once(ids)
    done = lane.lines("message.done", ids)
    assert {line["attempt"] for lines in done.values() for line in lines} == {1}
    assert min(lane.deliveries(ids).values()) > len(kinds)
    ends = [line for lines in lane.lines("message.released", ids).values() for line in lines]
    assert max(line.get("run_seconds", 0) for line in ends) < SOFT - 1
    for event in ("message.retry", "message.dead-letter", "task.failed", "lease.lost"):
        assert lane.lines(event, ids) == {}


def wait_for(lane: Lane, event: str, times: int) -> None:
    """Wait until the worker has said this so often."""
    worker = lane.service.worker
    lane.wait_for(lambda: len(worker.log_lines(event)) == times, f"{event} {times}")


def wait_for_releases(lane: Lane, ids: list[str], times: int) -> None:
    """Wait until each message was released so often."""

    def least() -> int:
        lines = lane.lines("message.released", ids)
        return min(len(lines.get(id_, ())) for id_ in ids)

    lane.wait_for(lambda: least() >= times, f"release {times} of each message")
