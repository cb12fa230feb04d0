"""Workers as real processes. However a test ends, its workers are gone after it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from devstack.mongo import MongoServer
from devstack.sqs import SqsServer
from tests.acceptance.worker import (
    Place,
    Service,
    StartWorker,
    database,
    place,
    serving,
    surroundings,
    workers,
)
from tests.contract import Contract
from tests.probe.project import MakeProject, ProbeProject
from tests.services import Queues
from tests.wheels import Wheels, install


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Starts workers that live until the end of the test, or shorter."""
    with workers(tmp_path) as start:
        yield start


@pytest.fixture
def make_project(tmp_path: Path, queues: Queues) -> Iterator[MakeProject]:
    """Makes one probe project on the test's own queues."""
    made: list[ProbeProject] = []

    def make(**settings: Any) -> ProbeProject:
        made.append(ProbeProject(tmp_path / "project", queues, **settings))
        return made[-1]

    yield make
    for project in made:
        project.close()


@pytest.fixture(scope="module")
def where(
    request: pytest.FixtureRequest,
    mongo_server: MongoServer,
    mongo_client: MongoClient,
    contract: Contract | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    """Queues and a database for all tests of a module, theirs alone."""
    home = tmp_path_factory.mktemp("home")
    if contract:
        contract.empty()
        with database(mongo_client) as name:
            environment = surroundings(home) | {"MONGO_URI": mongo_server.uri(name)}
            yield Place(contract.queues, environment | contract.environment, mongo_client[name])
        return
    sqs_server: SqsServer = request.getfixturevalue("sqs_server")
    client = sqs_server.client()
    with place(client, sqs_server.endpoint_url, mongo_server, mongo_client, home) as made:
        yield made
    client.close()


@pytest.fixture
def own(
    mongo_server: MongoServer, mongo_client: MongoClient, sqs_server: SqsServer, tmp_path: Path
) -> Iterator[Place]:
    """Queues and a database that no other worker uses."""
    client = sqs_server.client()
    with place(client, sqs_server.endpoint_url, mongo_server, mongo_client, tmp_path) as made:
        yield made
    client.close()


@pytest.fixture(scope="module")
def service(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One worker for all tests of a module."""
    with serving(where, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, wheels: Wheels) -> Path:
    """A directory where both wheels are installed, with their entry points."""
    directory = tmp_path_factory.mktemp("site")
    install(wheels, directory)
    return directory
