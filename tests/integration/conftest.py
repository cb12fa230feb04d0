"""What these tests share: two SQS servers, a run of a command, and a control plane."""

import contextlib
import io
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from kombu import Connection
from pymongo import MongoClient
from pymongo.database import Database

from devstack import sqs
from devstack.sqs import SqsServer
from sqs_broker.control import planes
from sqs_broker.control.store import Store
from sqs_broker.options import ControlOptions
from sqs_broker.tools.commands import sqs as commands
from tests.cloudformation import cloud as clouds
from tests.cloudformation.cloud import Cloud
from tests.services import Queues

Run = Callable[..., Result]
Connect = Callable[[], Connection]


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """moto, which knows SQS's error codes better than the other server; slow with many messages."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    with contextlib.redirect_stderr(io.StringIO()):
        server.stop()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """An AWS account in which templates can be deployed, and policies enforced. Of one module: moto
    can describe no stack while one is left that imports from a stack that is deleted."""
    with clouds.running(tmp_path_factory.mktemp("cloud")) as made:
        yield made


@pytest.fixture(params=["roto", "moto"])
def either(request: pytest.FixtureRequest) -> Iterator[Queues]:
    """A pair of queues on each of the two servers."""
    if request.param == "roto":
        server: SqsServer = request.getfixturevalue("sqs_server")
        url = server.endpoint_url
    else:
        url = request.getfixturevalue("moto_url")
    client = sqs.client_for(url)
    pair = sqs.create_queues(
        client, f"test-{uuid.uuid4().hex}", visibility_timeout=60, max_receive_count=10
    )
    yield Queues(client, url, pair.url, pair.dead_letter_url)
    client.delete_queue(QueueUrl=pair.url)
    client.delete_queue(QueueUrl=pair.dead_letter_url)
    client.close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `celery -A app sqs` in this process, on a pair of queues; its options may be changed."""
    # A local server is one server, so that a short poll sees all there is.
    monkeypatch.setattr("sqs_broker.tools.dead_letters.WAIT", 0)

    def run(queues: Queues, *arguments: str, stdin: str = "", **changes: Any) -> Result:
        options = transport_options(queues) | changes
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport", broker_transport_options=options
        )
        obj = SimpleNamespace(app=SimpleNamespace(conf=conf))
        return CliRunner().invoke(commands, arguments, input=stdin, obj=obj)

    return run


# The control plane


@pytest.fixture
def options(mongo_uri: str) -> dict[str, Any]:
    """The broker's option `control`, for everybody in a test."""
    name = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    return {"database_uri": mongo_uri, "database": f"{name}_control"}


@pytest.fixture
def database(options: dict[str, Any], mongo_client: MongoClient) -> Database[dict[str, Any]]:
    return mongo_client[options["database"]]


@pytest.fixture
def connect(options: dict[str, Any]) -> Iterator[Connect]:
    """Makes connections, which share what a process has, and closes all of it after the test."""
    made: list[Connection] = []

    def new() -> Connection:
        queues = {"jobs": {"url": "https://sqs.test/jobs"}}
        transport = {"region": "us-east-1", "predefined_queues": queues, "control": options}
        made.append(
            Connection("sqs://", transport="sqs_broker:Transport", transport_options=transport)
        )
        return made[-1]

    yield new
    for connection in made:
        connection.release()
    if shared := planes._planes.pop(ControlOptions.read(options), None):
        shared.close()


@pytest.fixture
def store(options: dict[str, Any]) -> Iterator[Store]:
    made = Store(ControlOptions.read(options))
    yield made
    made.close()


def transport_options(queues: Queues) -> dict[str, Any]:
    """What celeryconfig.py makes for one queue."""
    return {
        "region": queues.region,
        "endpoint_url": queues.endpoint_url,
        "credentials": {"aws_access_key_id": "test", "aws_secret_access_key": "test"},
        "predefined_queues": {
            queues.name: {"url": queues.url, "dead_letter_url": queues.dead_letter_url}
        },
        "decode_json": "app.messages:decode_json",
    }
