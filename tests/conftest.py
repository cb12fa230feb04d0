"""Services for the tests. A service that does not start fails the test; nothing is skipped."""

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from pymongo import MongoClient

from devstack import mongo, sqs
from devstack.mongo import MongoServer
from devstack.sqs import SqsServer
from tests.contract import Contract, from_environment
from tests.deployments import deployment
from tests.deployments.deployment import Deployment
from tests.services import MakeQueues, Queues
from tests.wheels import Wheels, build

# No example has to end within a time: the machine may be busy.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = pytest.StashKey[Contract | None]()
OUR_PREFIXES = ("AWS_", "SQS_", "TASK_", "ONCE_", "CONTROL_", "FLOWER_", "WORKER_", "API_")
OUR_VARIABLES = {"MONGO_URI", "MONGO_SECRET_ARN", "LOG_LEVEL", "STARTING_MONEY"}


@pytest.fixture(scope="session", autouse=True)
def _clean_session() -> Iterator[None]:
    """The services of the session start before the first test's own clean environment."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        strip_environment(monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the settings, the `.env` or the AWS profile of whoever runs it."""
    from app.settings import ApiSettings, FlowerSettings, FunctionSettings, Settings

    strip_environment(monkeypatch)
    for settings in (Settings, FlowerSettings, FunctionSettings, ApiSettings):
        monkeypatch.setitem(settings.model_config, "env_file", None)
    _forget_settings()
    yield
    _forget_settings()


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoServer]:
    """One mongod for the session, with fail points, started by the first test that needs it."""
    directory = tmp_path_factory.mktemp("mongo")
    with mongo.running(
        data=directory / "data", log=directory / "mongod.log", test_commands=True
    ) as server:
        yield server


@pytest.fixture(scope="session")
def mongo_client(mongo_server: MongoServer) -> Iterator[MongoClient]:
    """The tests' own connection, for looking into what the code under test stored."""
    with MongoClient(mongo_server.uri("test"), tz_aware=True) as client:
        yield client


@pytest.fixture(scope="session")
def sqs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    """One SQS server for the session, started by the first test that needs it."""
    with sqs.running(log=tmp_path_factory.mktemp("sqs") / "roto.log") as server:
        yield server


@pytest.fixture
def mongo_uri(
    request: pytest.FixtureRequest, mongo_server: MongoServer, mongo_client: MongoClient
) -> Iterator[str]:
    """The URI of a database of this test's own."""
    refuse_in_unit_tests(request)
    database = f"test_{uuid.uuid4().hex}"
    yield mongo_server.uri(database)
    mongo_client.drop_database(database)
    mongo_client.drop_database(f"{database}_control")


@pytest.fixture(scope="module")
def three_nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A replica set of three members with data, for a module; whole again after each test."""
    refuse_in_unit_tests(request)
    with deployment.running(tmp_path_factory.mktemp("three"), members=3) as made:
        yield made


@pytest.fixture(scope="module")
def with_arbiter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A primary, a secondary and an arbiter, for a module; whole again after each test."""
    refuse_in_unit_tests(request)
    directory = tmp_path_factory.mktemp("arbiter")
    with deployment.running(directory, members=2, has_arbiter=True) as made:
        yield made


@pytest.fixture(scope="module")
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """One member that asks for a login and speaks TLS alone, for a module. The application has no
    role but those that a test grants, and takes away again."""
    refuse_in_unit_tests(request)
    directory = tmp_path_factory.mktemp("secured")
    with deployment.running(directory, authentication=True, tls=True) as made:
        yield made


@pytest.fixture(autouse=True)
def _whole_deployments(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test did to a deployment is undone after it."""
    names = {"three_nodes", "with_arbiter", "secured"} & set(request.fixturenames)
    used: list[Deployment] = [request.getfixturevalue(name) for name in names]
    yield
    for each in used:
        each.repair()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make contract` gives the first."""
    parser.addoption("--contract", action="store_true", help="run against a real queue")
    parser.addoption("--screenshots", action="store_true", help="make the pictures of docs/ anew")
    parser.addoption("--long", action="store_true", help="search for faults of the API for longer")


def pytest_configure(config: pytest.Config) -> None:
    """Find the real queue and its credentials before any test strips the environment."""
    config.stash[CONTRACT] = from_environment() if config.getoption("--contract") else None


@pytest.fixture(scope="session")
def contract(request: pytest.FixtureRequest) -> Contract | None:
    """The real queue to run against; None where the tests make their own."""
    return request.config.stash[CONTRACT]


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Both distributions as they are installed elsewhere."""
    return build(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def make_queues(request: pytest.FixtureRequest) -> Iterator[MakeQueues]:
    """Makes pairs of queues of this test's own, deleted after it."""
    refuse_in_unit_tests(request)
    sqs_server: SqsServer = request.getfixturevalue("sqs_server")
    client = sqs_server.client()
    made: list[Queues] = []

    def make(*, visibility_timeout: int = 60, max_receive_count: int = 10) -> Queues:
        pair = sqs.create_queues(
            client,
            f"test-{uuid.uuid4().hex}",
            visibility_timeout=visibility_timeout,
            max_receive_count=max_receive_count,
        )
        queues = Queues(client, sqs_server.endpoint_url, pair.url, pair.dead_letter_url)
        made.append(queues)
        return queues

    yield make
    for queues in made:
        client.delete_queue(QueueUrl=queues.url)
        client.delete_queue(QueueUrl=queues.dead_letter_url)
    client.close()


@pytest.fixture
def queues(request: pytest.FixtureRequest, contract: Contract | None) -> Queues:
    """One pair of queues. An indirect parameter gives the arguments of `make_queues`."""
    if contract:
        contract.empty()
        return contract.queues
    make: MakeQueues = request.getfixturevalue("make_queues")
    return make(**getattr(request, "param", {}))


@pytest.fixture
def environment(
    queues: Queues, mongo_uri: str, tmp_path: Path, contract: Contract | None
) -> dict[str, str]:
    """All the environment that a child process of the test gets."""
    local = {
        # The interpreter's own scripts first: `celery` is the one of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "AWS_REGION": queues.region,
        "AWS_ENDPOINT_URL": queues.endpoint_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_SQS_QUEUE_URL": queues.url,
        "AWS_SQS_DLQ_URL": queues.dead_letter_url,
        "MONGO_URI": mongo_uri,
    }
    if contract is None:
        return local
    return local | contract.environment


def _forget_settings() -> None:
    from app.settings import (
        get_api_settings,
        get_flower_settings,
        get_producer_settings,
        use_mongo_uri,
    )

    use_mongo_uri(None)
    get_api_settings.cache_clear()
    get_flower_settings.cache_clear()
    get_producer_settings.cache_clear()
    if celery_module := sys.modules.get("app.celery"):
        celery_module.celeryconfig.cache_clear()


def refuse_in_unit_tests(request: pytest.FixtureRequest) -> None:
    """Unit tests start no server, so that they stay fast and need nothing."""
    if request.path.is_relative_to(ROOT / "tests" / "unit"):
        pytest.fail(f"{request.fixturename} starts a server: not in tests/unit", pytrace=False)


def strip_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away every variable of ours, and what boto3's own chain would find."""
    for name in list(os.environ):
        if name.startswith(OUR_PREFIXES) or name in OUR_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    # Else boto3 asks the network whether this is a machine in the cloud.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
