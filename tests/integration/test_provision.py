"""`sqs provision`: it makes what a worker needs, twice if need be, and leaves stacks alone."""

import json
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pymongo import MongoClient

from app.commands.provision import command
from app.settings import Settings, get_settings
from devstack import sqs
from sqs_broker.options import Options
from sqs_broker.sqs.boto import Boto
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.checks import Level, check_dead_letters, check_queue
from sqs_broker.tools.provision import STACK_TAG, of_dead_letters, of_queue
from tests.cloudformation.cloud import Cloud
from tests.cloudformation.template import fold, read
from tests.integration.conftest import transport_options
from tests.services import Queues

ACCOUNT = "arn:aws:sqs:us-east-1:123456789012:"

#: Its server starts slowly.
pytestmark = pytest.mark.slow

Provision = Callable[[], Result]


@pytest.fixture
def absent(cloud: Cloud) -> Iterator[Queues]:
    """Two queues that do not exist yet."""
    name = f"test-{uuid.uuid4().hex}"
    endpoint = cloud.owner.endpoint_url
    client = sqs.client_for(endpoint)
    url = f"{endpoint}/123456789012/{name}"
    yield Queues(client, endpoint, url, f"{url}-dlq")
    client.close()


@pytest.fixture
def provision(absent: Queues, mongo_uri: str, monkeypatch: pytest.MonkeyPatch) -> Provision:
    def run() -> Result:
        for name, value in {
            "AWS_REGION": absent.region,
            "AWS_SQS_QUEUE_URL": absent.url,
            "AWS_SQS_DLQ_URL": absent.dead_letter_url,
            "MONGO_URI": mongo_uri,
        }.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        conf = SimpleNamespace(
            broker_transport="sqs_broker:Transport",
            broker_transport_options=transport_options(absent),
        )
        return CliRunner().invoke(command, obj=SimpleNamespace(app=SimpleNamespace(conf=conf)))

    return run


def attributes(queues: Queues, url: str) -> dict[str, str]:
    found = queues.client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    return {str(name): value for name, value in found["Attributes"].items()}


def test_queues_and_indexes_are_made_as_a_worker_needs_them(
    absent: Queues, provision: Provision, mongo_client: MongoClient[Any], mongo_uri: str
) -> None:
    ran = provision()
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.splitlines()[:2] == [
        f"{absent.dead_letter_url}: created",
        f"{absent.url}: created",
    ]
    options = Options.read(transport_options(absent))
    driver = Boto(options)
    queue, dead = (
        Queue(url, driver).attributes("All").values for url in (absent.url, absent.dead_letter_url)
    )
    found = [
        *check_queue(absent.name, options, queue),
        *check_dead_letters(absent.name, absent.dead_letter_url, queue, dead),
    ]
    driver.close()
    assert {each.check: each.text for each in found if each.level is not Level.OK} == {}
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    indexes = mongo_client[database]["users"].index_information()
    assert any(each.get("unique") and len(each["key"]) == 2 for each in indexes.values())


def test_a_second_run_changes_nothing_and_messages_stay(
    absent: Queues, provision: Provision
) -> None:
    provision()
    absent.client.send_message(QueueUrl=absent.url, MessageBody="kept")
    ran = provision()
    assert ran.exit_code == 0
    assert ran.stdout.count("as it should be") == 2
    assert absent.counts() == (1, 0, 0)


def test_a_queue_that_differs_is_changed_and_its_own_policy_and_longer_retention_stay(
    absent: Queues, provision: Provision
) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
        "Action": "sqs:SendMessage",
        "Resource": f"{ACCOUNT}{absent.name}",
    }
    own = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    absent.client.create_queue(
        QueueName=absent.name,
        Attributes={
            "VisibilityTimeout": "30",
            "MessageRetentionPeriod": "1209600",
            "DelaySeconds": "5",
        },
    )
    absent.client.set_queue_attributes(QueueUrl=absent.url, Attributes={"Policy": own})
    ran = provision()
    assert ran.exit_code == 0, ran.output
    assert f"{absent.url}: changed\n" in ran.stdout
    assert "VisibilityTimeout: 30, should be 60" in ran.stdout
    found = attributes(absent, absent.url)
    assert found["VisibilityTimeout"] == "60"
    assert json.loads(found["RedrivePolicy"])["deadLetterTargetArn"].endswith("-dlq")
    assert (found["MessageRetentionPeriod"], found["DelaySeconds"]) == ("1209600", "5")
    assert json.loads(found["Policy"]) == json.loads(own)


def test_a_queue_of_a_stack_is_compared_and_not_touched(
    absent: Queues, provision: Provision
) -> None:
    provision()
    absent.client.tag_queue(QueueUrl=absent.url, Tags={STACK_TAG: "jobs-queue"})
    assert provision().exit_code == 0
    absent.client.set_queue_attributes(QueueUrl=absent.url, Attributes={"VisibilityTimeout": "30"})
    ran = provision()
    assert ran.exit_code == 1
    assert f"{absent.url}: differs (stack jobs-queue)" in ran.stdout
    assert "  VisibilityTimeout: 30, should be 60" in ran.stdout
    assert attributes(absent, absent.url)["VisibilityTimeout"] == "30"


def test_the_template_the_settings_and_provision_agree() -> None:
    url = "https://sqs.us-east-1.amazonaws.com/123456789012/jobs"
    settings = Settings()
    options = Options.read(
        {
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": url, "dead_letter_url": f"{url}-dlq"}},
            "visibility_timeout": settings.visibility_timeout,
            "max_receive_count": settings.sqs_max_receive_count,
            "max_message_bytes": settings.sqs_max_message_bytes,
            "wait_time_seconds": settings.sqs_wait_time,
        }
    )
    template = fold(read("queue.yaml"), {"QueueName": "jobs"})
    for name, made in {
        "Queue": of_queue(options, ACCOUNT, url, f"{url}-dlq"),
        "DeadLetterQueue": of_dead_letters(options, ACCOUNT, [url]),
    }.items():
        properties = template[name]["Properties"]
        provided = {key: value for key, value in made.items() if key != "Policy"}
        declared = {key: properties[key] for key in properties if key != "QueueName"}
        assert set(provided) == set(declared)
        for key, value in provided.items():
            if "Policy" not in key:
                assert value == str(declared[key]).lower(), key
        policy = template[f"{name}Policy"]["Properties"]["PolicyDocument"]["Statement"][0]
        (statement,) = json.loads(made["Policy"])["Statement"]
        assert {**statement, "Resource": None} == {**policy, "Resource": None}
    redrive = template["Queue"]["Properties"]["RedrivePolicy"]
    assert redrive["maxReceiveCount"] == options.policy.max_receive_count
