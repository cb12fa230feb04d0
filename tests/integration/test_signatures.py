"""Two servers that check signatures accept those of each client, and refuse a wrong one."""

import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from devstack import ports
from devstack.process import Process
from devstack.sqs import ACCESS_KEY, REGION
from sqs_broker.options import BOTO3, CURL, Options
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import Outgoing
from tests import ministack
from tests.services import wait_until

pytestmark = pytest.mark.slow

DEADLINE = 20

#: May do all.
POLICY = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
)

TRUST = (
    '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", '
    '"Principal": {"AWS": "*"}}]}'
)

Credentials = dict[str, str]


@dataclass(frozen=True)
class Server:
    """A server with a queue."""

    endpoint_url: str
    queue_url: str
    key: Credentials
    #: Temporary credentials, with a token.
    session: Credentials

    @contextmanager
    def queue(self, client: str, credentials: Credentials) -> Iterator[Queue]:
        """The queue, by this client."""
        options = Options(REGION, {}, self.endpoint_url, credentials, client=client)
        with closing(driver_for(options, tries=1)) as driver:
            yield Queue(self.queue_url, driver)


def prepared(url: str, client: Callable[[str], Any]) -> Server:
    """Create a queue, and a user and a role that may use it."""
    with (
        closing(client("sqs")) as sqs,
        closing(client("iam")) as iam,
        closing(client("sts")) as sts,
    ):
        queue_url = sqs.create_queue(QueueName="signed")["QueueUrl"]
        iam.create_user(UserName="worker")
        iam.put_user_policy(UserName="worker", PolicyName="all", PolicyDocument=POLICY)
        key = iam.create_access_key(UserName="worker")["AccessKey"]
        role = iam.create_role(RoleName="worker", AssumeRolePolicyDocument=TRUST)["Role"]
        iam.put_role_policy(RoleName="worker", PolicyName="all", PolicyDocument=POLICY)
        taken = sts.assume_role(RoleArn=role["Arn"], RoleSessionName="worker")["Credentials"]
    return Server(url, queue_url, _credentials(key), _credentials(taken))


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = ports.preferred_or_any(None)
    url = f"http://{ports.HOST}:{port}"
    # A process of its own: whether it checks is a setting of the whole process.
    command = [sys.executable, "-m", "moto.server", "-H", ports.HOST, "-p", str(port)]
    directory = tmp_path_factory.mktemp("moto")
    with Process("moto", command, log=directory / "log", grace=1) as process:

        def answers() -> bool:
            process.check()
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=1).close()
            except OSError:
                return False
            return True

        wait_until(answers, DEADLINE, "an answer of moto")

        def client(service: Any) -> Any:
            return boto3.client(
                service, endpoint_url=url, region_name=REGION,
                aws_access_key_id=ACCESS_KEY, aws_secret_access_key=ACCESS_KEY,
            )  # fmt: skip

        made = prepared(url, client)
        request = urllib.request.Request(
            f"{url}/moto-api/reset-auth",
            data=b"0",
            method="POST",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request, timeout=DEADLINE).close()
        yield made


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """ministack, whose check is its own code; moto's is botocore's."""
    directory: Path = tmp_path_factory.mktemp("ministack")
    with ministack.running(directory, checks_signatures=True) as server:
        yield prepared(server.endpoint_url, server.client)


@pytest.fixture(params=["moto", "other"])
def server(request: pytest.FixtureRequest) -> Server:
    made: Server = request.getfixturevalue(request.param)
    return made


def _credentials(made: dict[str, Any]) -> Credentials:
    found = {
        "aws_access_key_id": made["AccessKeyId"],
        "aws_secret_access_key": made["SecretAccessKey"],
    }
    if token := made.get("SessionToken"):
        found["aws_session_token"] = token
    return found


def send_and_delete(queue: Queue) -> None:
    bodies = ["{}", '{"nickname": "정보 + / ~ %20"}', "x" * 70_000]
    for body in bodies:
        queue.send(Outgoing(body, {"n": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}))
    assert queue.send_many([Outgoing("{}")] * 3) == [None] * 3
    found: list[str] = []
    while len(found) < len(bodies) + 3:
        for message in wait_until(lambda: queue.receive(10, 0), DEADLINE, "messages"):
            found.append(message.body)
            handle = message.receipt_handle
            assert queue.change_visibility([(handle, 30)]) == [None]
            assert queue.delete([handle]) == [None]
    assert sorted(found) == sorted([*bodies, *["{}"] * 3])


@pytest.mark.parametrize("client", [CURL, BOTO3])
def test_the_calls_of_a_worker_are_accepted(server: Server, client: str) -> None:
    with server.queue(client, server.key) as queue:
        send_and_delete(queue)


@pytest.mark.parametrize("client", [CURL, BOTO3])
def test_the_calls_of_a_session_are_accepted_with_its_token(server: Server, client: str) -> None:
    with server.queue(client, server.session) as queue:
        send_and_delete(queue)


@pytest.mark.parametrize("client", [CURL, BOTO3])
@pytest.mark.parametrize("wrong", ["aws_access_key_id", "aws_secret_access_key"])
def test_a_call_with_a_wrong_key_is_refused(server: Server, client: str, wrong: str) -> None:
    with (
        server.queue(client, server.key | {wrong: "wrong"}) as queue,
        pytest.raises(SqsError) as raised,
    ):
        queue.send(Outgoing("{}"))
    assert raised.value.has_reached
    assert not raised.value.may_have_been_done
