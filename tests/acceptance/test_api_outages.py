"""The HTTP API while MongoDB fails over and the worker is away."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.api_process import Api, apis
from tests.acceptance.worker import Place, StartWorker
from tests.deployments.deployment import Deployment
from tests.services import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Seconds in which any answer comes that waits for nothing: more than a read of MongoDB may take.
ANSWERED = 8
#: Seconds in which a worker that has just started stores the first user.
STORED = 25
#: Seconds between two registrations.
PAUSE = 0.1


@pytest.fixture
def environment(where: Place, three_nodes: Deployment) -> dict[str, str]:
    """That of an API and a worker, with three members of MongoDB."""
    return {**where.environment, "MONGO_URI": three_nodes.uri("api")}


@pytest.fixture
def api(environment: dict[str, str], tmp_path: Path) -> Iterator[Api]:
    with apis(tmp_path) as start:
        yield start(environment)


class Clients:
    """Registers a user and asks for its state, again and again, until the end of the block."""

    def __init__(self, api: Api) -> None:
        self.ids: list[str] = []
        self.posted: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()
        self.longest = 0.0
        self._api = api
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(1)

    def __enter__(self) -> "Clients":
        self._work = self._threads.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._work.result(60)
        self._threads.shutdown()

    def _run(self) -> None:
        while not self._ended.is_set():
            user = {"stockId": "s", "userId": f"u{len(self.ids)}", "userInfo": {"nickname": "k"}}
            began = time.monotonic()
            answer = self._api.post("/registrations", user)
            self.posted[answer.status] += 1
            self.ids.append(answer.json()["id"])
            self.asked[self._api.get(f"/registrations/{self.ids[-1]}").status] += 1
            self.longest = max(self.longest, time.monotonic() - began)
            self._ended.wait(PAUSE)


def test_in_a_failover_each_registration_is_accepted_and_all_states_are_right_after_it(
    api: Api,
    environment: dict[str, str],
    where: Place,
    three_nodes: Deployment,
    start_worker: StartWorker,
) -> None:
    with ThreadPoolExecutor(1) as waiters:
        with Clients(api) as clients:
            wait_until(lambda: len(clients.ids) > 20, 30, "registrations before the failover")
            waiting = waiters.submit(api.get, f"/registrations/{clients.ids[0]}?wait=60")
            # The worker is away.
            assert api.get(f"/registrations/{clients.ids[0]}?wait=1").json()["state"] == "pending"
            three_nodes.kill(three_nodes.wait_for_primary())
            three_nodes.wait_for_primary()
            count = len(clients.ids)
            wait_until(lambda: len(clients.ids) > count + 20, 60, "registrations after it")

        # What could not be stored during the failover is known after it.
        for id_ in clients.ids:
            wait_until(lambda id_=id_: state(api, id_) == "pending", 30, f"the state of {id_}")
        assert not waiting.done()
        worker = start_worker(environment)
        began = time.monotonic()
        assert waiting.result(70).json()["state"] == "registered"
        # One member is still down, and the worker makes the index of the outcomes.
        assert time.monotonic() - began < STORED
    assert set(clients.posted) == {202}
    # While MongoDB is away, reading says so, in time.
    assert set(clients.asked) <= {200, 503}
    assert clients.asked[200] >= 40
    assert clients.longest < ANSWERED
    worker.wait_for(where.queues.is_empty, 60, "an empty queue")
    states = Counter(state(api, f"{id_}?wait=30") for id_ in clients.ids)
    assert states == {"registered": len(clients.ids)}
    assert not api.log_lines("http.failed")


def test_an_id_accepted_while_mongodb_was_away_is_unknown_if_the_process_ends_and_known_to_a_worker(
    where: Place, start_worker: StartWorker, tmp_path: Path
) -> None:
    # Nobody listens on a port that this socket has.
    with socket.socket() as away_at, apis(tmp_path) as start_api:
        away_at.bind(("127.0.0.1", 0))
        uri = f"mongodb://127.0.0.1:{away_at.getsockname()[1]}/away"
        nowhere = {**where.environment, "MONGO_URI": uri}
        api = start_api(nowhere)
        user = {"stockId": "s", "userId": "u1", "userInfo": {"nickname": "k"}}
        accepted = api.post("/registrations", user)
        target = accepted.headers["location"]
        # Its own process has not forgotten it, and says so once MongoDB is there.
        away = api.get(target)
        assert (accepted.status, away.status) == (202, 503)
        assert int(away.headers["retry-after"]) > 0
        api.kill()

        other = start_api(where.environment)
        unknown = other.get(target)
        assert (unknown.status, unknown.json()["type"].rpartition(":")[2]) == (404, "not-found")
        # Who waits for it is told at once, too.
        began = time.monotonic()
        assert other.get(f"{target}?wait=60").status == 404
        assert time.monotonic() - began < ANSWERED
        start_worker(where.environment)
        found = accepted.json()["id"]
        wait_until(lambda: state(other, found) == "registered", STORED, "the state of the id")


def state(api: Api, target: str) -> str | None:
    answer = api.get(f"/registrations/{target}")
    return str(answer.json()["state"]) if answer.status == 200 else None
