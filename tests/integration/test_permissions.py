"""The managed policies of infra/queue.yaml, enforced: each role does its whole job, no permission
can be taken away, and nothing else is allowed."""

import io
import json
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from botocore.exceptions import ClientError
from celery import Celery, current_app

from sqs_broker import install
from sqs_broker.function import Function
from sqs_broker.observers.metrics import NAMESPACE
from sqs_broker.rules.dead_letter import read_note
from sqs_broker.sqs.errors import SqsError
from sqs_broker.tools import mappings, pause_metric
from sqs_broker.tools.commands.queues import ages_from
from tests.acceptance.function import event_of
from tests.cloudformation.cloud import Cloud, Identity, Stack
from tests.integration.conftest import Run, transport_options
from tests.services import Queues, wait_until

# Each denial is a job with many calls.
pytestmark = pytest.mark.slow

#: A permission: a statement's action, and whose resource it is for.
Permission = tuple[str, str]

#: What each permission is for: the parts of the role's job that fail without it.
NEEDED_FOR: Mapping[str, Mapping[Permission, set[str]]] = {
    "ProducerPolicyArn": {
        ("sqs:SendMessage", "Queue"): {"send"},
        ("sns:Publish", "Topic"): {"publish"},
    },
    "ReaderPolicyArn": {
        ("sqs:GetQueueAttributes", "Queue"): {"count"},
        ("sqs:GetQueueAttributes", "DeadLetterQueue"): {"count"},
        ("cloudwatch:GetMetricData", "*"): {"age"},
    },
    "ConsumerPolicyArn": {
        ("sqs:ReceiveMessage", "Queue"): {"receive"},
        ("sqs:GetQueueAttributes", "Queue"): {"check"},
        ("sqs:DeleteMessage", "Queue"): {"done", "dead-letter", "postpone"},
        ("sqs:ChangeMessageVisibility", "Queue"): {"retry"},
        ("sqs:SendMessage", "Queue"): {"postpone"},
        ("sqs:SendMessage", "DeadLetterQueue"): {"dead-letter"},
    },
    "OperatorPolicyArn": {
        ("sqs:GetQueueAttributes", "Queue"): {"count"},
        ("sqs:SendMessage", "Queue"): {"redrive"},
        ("sqs:GetQueueAttributes", "DeadLetterQueue"): {
            "count",
            "list",
            "show",
            "redrive",
            "purge",
            "import",
        },
        ("sqs:ReceiveMessage", "DeadLetterQueue"): {"list", "show", "redrive", "purge"},
        ("sqs:ChangeMessageVisibility", "DeadLetterQueue"): {"list"},
        ("sqs:DeleteMessage", "DeadLetterQueue"): {"redrive", "purge"},
        ("sqs:SendMessage", "DeadLetterQueue"): {"import"},
        ("cloudwatch:GetMetricData", "*"): {"age"},
        ("lambda:ListEventSourceMappings", "*"): {"functions"},
    },
}

#: The local SQS does not ask KMS, so these are not enforced.
OF_THE_KEY = {("kms:GenerateDataKey", "Key"), ("kms:Decrypt", "Key")}

DENIALS = [(role, action, queue) for role, needed in NEEDED_FOR.items() for action, queue in needed]


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> Iterator[Stack]:
    """A queue with a topic, in an account in which each call needs a permission."""
    with cloud.enforced():
        made = deployed(cloud)
        for name in ("QueueUrl", "DeadLetterQueueUrl"):
            # A look into an empty queue would take as long as a long poll.
            cloud.client("sqs").set_queue_attributes(
                QueueUrl=made.outputs[name], Attributes={"ReceiveMessageWaitTimeSeconds": "0"}
            )
        yield made


@pytest.fixture(autouse=True)
def _current_app() -> Iterator[None]:
    """The function makes its app Celery's current one."""
    before = current_app._get_current_object()
    yield
    before.set_current()


def deployed(cloud: Cloud, **parameters: str) -> Stack:
    return cloud.stack(
        "queue.yaml", QueueName=f"q-{uuid.uuid4().hex[:8]}", Topic="true", **parameters
    )


def permissions(stack: Stack, role: str) -> set[Permission]:
    """The permissions of a policy."""
    return {
        (action, _whose(resource))
        for statement in stack.document(role)["Statement"]
        for action in _list(statement["Action"])
        for resource in _list(statement["Resource"])
    }


def without(stack: Stack, role: str, permission: Permission) -> dict[str, Any]:
    """The document of a policy, without one permission."""
    document = stack.document(role)
    statements = [
        {"Effect": "Allow", "Action": action, "Resource": resource}
        for statement in document["Statement"]
        for action in _list(statement["Action"])
        for resource in _list(statement["Resource"])
        if (action, _whose(resource)) != permission
    ]
    return {**document, "Statement": statements}


def _whose(resource: str) -> str:
    service = resource.split(":")[2] if resource != "*" else "*"
    if service == "sqs":
        return "DeadLetterQueue" if resource.endswith("-dlq") else "Queue"
    return {"sns": "Topic", "kms": "Key", "*": "*"}[service]


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


# The jobs -----------------------------------------------------------------------------------------


class Failed(Exception):
    """A part of a job did not do what it is for."""


class Job:
    """What somebody with these credentials does, part by part. A part that fails raises."""

    def __init__(self, stack: Stack, identity: Identity, run: Run) -> None:
        self._identity = identity
        self._run = run
        outputs = stack.outputs
        self._topic, self._arn = outputs["TopicArn"], outputs["QueueArn"]
        urls = outputs["QueueUrl"], outputs["DeadLetterQueueUrl"]
        self._owner = owner = stack.cloud.owner
        #: The queues, as their owner sees them, and as this identity does.
        self.owned = Queues(owner.client("sqs"), owner.endpoint_url, *urls)
        self.seen = Queues(identity.client("sqs"), owner.endpoint_url, *urls)

    def parts(self, role: str) -> dict[str, Callable[[], None]]:
        """The parts of the job of a role, by name."""
        return {
            "ProducerPolicyArn": {"send": self.send, "publish": self.publish},
            "ReaderPolicyArn": {"count": self.count, "age": self.age},
            "ConsumerPolicyArn": {
                "receive": self.receive,
                "check": self.check,
                "done": self.done,
                "retry": self.retry,
                "dead-letter": self.dead_letter,
                "postpone": self.postpone,
            },
            "OperatorPolicyArn": {
                "count": self.count,
                "age": self.age,
                "list": self.list,
                "show": self.show,
                "redrive": self.redrive,
                "purge": self.purge,
                "import": self.import_,
                "functions": self.functions,
            },
        }[role]

    def failing(self, role: str) -> set[str]:
        """The parts that fail."""
        failed = set()
        for name, part in self.parts(role).items():
            try:
                part()
            except (Failed, ClientError, SqsError):
                failed.add(name)
            self._empty()
        return failed

    def _empty(self) -> None:
        for url in (self.owned.url, self.owned.dead_letter_url):
            self.owned.client.purge_queue(QueueUrl=url)

    # The producer

    def send(self) -> None:
        entries = [{"Id": "1", "MessageBody": "{}"}]
        client: Any = self.seen.client
        client.send_message(QueueUrl=self.seen.url, MessageBody="{}")
        client.send_message_batch(QueueUrl=self.seen.url, Entries=entries)

    def publish(self) -> None:
        self._identity.client("sns").publish(TopicArn=self._topic, Message="{}")

    # The reader

    def count(self) -> None:
        self._command("queues")

    def age(self) -> None:
        urls = {"queue": self.seen.url, "dead": self.seen.dead_letter_url}
        ages_from(self._identity.client("cloudwatch"), urls, datetime.now(UTC))

    # The consumer: what Lambda does with the role of a function, and the function itself

    def receive(self) -> None:
        self._send("{}")
        if not event_of(self.seen)["Records"]:
            raise Failed

    def check(self) -> None:
        names = ["VisibilityTimeout", "RedrivePolicy"]
        client: Any = self.seen.client
        client.get_queue_attributes(QueueUrl=self.seen.url, AttributeNames=names)

    def done(self) -> None:
        self._handle(message("succeed"))
        if not self.owned.is_empty():
            raise Failed

    def retry(self) -> None:
        self._handle(message("fail"))
        # The backoff is shorter than a second, and the visibility timeout 210 s.
        with suppress(TimeoutError):
            wait_until(lambda: self.owned.counts()[0], 1.5, "the message")
            return
        raise Failed

    def dead_letter(self) -> None:
        self._handle("nonsense")
        dead = self.owned.dead_letters()
        if not (self.owned.is_empty() and len(dead) == 1):
            raise Failed
        assert (read_note(dead[0]["MessageAttributes"]) or {})["reason"]

    def postpone(self) -> None:
        self._handle(message("succeed", eta=(datetime.now(UTC) + timedelta(hours=1)).isoformat()))
        if self.owned.counts() != (0, 0, 1):
            raise Failed

    def _handle(self, body: str) -> None:
        self._send(body)
        function = Function(self._app(), write=lambda _: None)
        function(event_of(self.owned), Context())

    def _app(self) -> Celery:
        app = Celery("tests", set_as_current=False)
        install(app)
        app.conf.broker_transport_options = self._options() | {"backoff_base": 0.1}
        app.conf.task_acks_late = True
        app.task(name="succeed")(succeed)
        app.task(name="fail")(fail)
        return app

    # The operator

    def list(self) -> None:
        self._dead_letters(2)
        self._command("dlq", "list")
        # A list leaves the dead letters as they were.
        visible = self.owned.client.get_queue_attributes(
            QueueUrl=self.owned.dead_letter_url, AttributeNames=["ApproximateNumberOfMessages"]
        )["Attributes"]["ApproximateNumberOfMessages"]
        if visible != "2":
            raise Failed

    def show(self) -> None:
        self._dead_letters(1)
        (dead,) = self.owned.dead_letters()
        self._command("dlq", "show", dead["MessageId"])

    def redrive(self) -> None:
        self._dead_letters_of_before()
        self._command("dlq", "redrive", "--yes")
        if self.owned.counts() != (1, 0, 0) or self.owned.dead_letters():
            raise Failed

    def purge(self) -> None:
        self._dead_letters_of_before()
        self._command("dlq", "purge", "--yes")
        if self.owned.dead_letters():
            raise Failed

    def import_(self) -> None:
        self._dead_letters(1)
        with TemporaryDirectory() as directory:
            file = f"{directory}/letters.jsonl"
            exported = self._run(self.owned, "dlq", "export", "--file", file,
                                 credentials=self._owner.credentials)  # fmt: skip
            assert exported.exit_code == 0, exported.output
            self._empty()
            self._command("dlq", "import", file)
        if len(self.owned.dead_letters()) != 1:
            raise Failed

    def functions(self) -> None:
        """What a pause looks for, also of a queue that only workers read."""
        assert list(mappings.enabled(self._identity.client("lambda"), self._arn)) == []

    def _dead_letters_of_before(self) -> None:
        """What arrives in the second in which a command starts, stays."""
        self._dead_letters(1)
        began = time.time()
        wait_until(lambda: int(time.time()) > began, 2, "the next second")

    def _dead_letters(self, number: int) -> None:
        for _ in range(number):
            body = message("succeed")
            self.owned.client.send_message(QueueUrl=self.owned.dead_letter_url, MessageBody=body)

    def _send(self, body: str) -> None:
        self.owned.client.send_message(QueueUrl=self.owned.url, MessageBody=body)

    def _command(self, *arguments: str) -> None:
        ran = self._run(self.seen, *arguments, credentials=self._identity.credentials)
        if ran.exit_code:
            raise Failed(ran.output)

    def _options(self) -> dict[str, Any]:
        return transport_options(self.seen) | {
            "credentials": self._identity.credentials,
            "visibility_timeout": 210,
        }


class Context:
    """What Lambda passes with an event."""

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


def succeed() -> None:
    pass


def fail() -> None:
    raise ValueError


def message(task: str, **headers: str) -> str:
    return json.dumps(
        {
            "body": json.dumps(((), {}, {})),
            "headers": {"task": task, "id": uuid.uuid4().hex} | headers,
            "properties": {},
            "content-type": "application/json",
            "content-encoding": "utf-8",
        }
    )


# The rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", NEEDED_FOR)
def test_a_role_does_its_whole_job(stack: Stack, run: Run, role: str) -> None:
    job = Job(stack, stack.cloud.role(stack.document(role)), run)
    assert job.failing(role) == set()


@pytest.mark.parametrize(("role", "action", "queue"), DENIALS)
def test_without_a_permission_a_part_of_the_job_fails(
    stack: Stack, run: Run, role: str, action: str, queue: str
) -> None:
    document = without(stack, role, (action, queue))
    job = Job(stack, stack.cloud.role(document), run)
    assert job.failing(role) == NEEDED_FOR[role][action, queue]


@pytest.mark.parametrize("role", NEEDED_FOR)
def test_each_permission_is_one_without_which_a_part_fails(stack: Stack, role: str) -> None:
    assert permissions(stack, role) == set(NEEDED_FOR[role])


def test_with_a_key_who_sends_or_receives_may_use_it(stack: Stack) -> None:
    with_key = deployed(stack.cloud, Encryption="kms")
    more = {role: permissions(with_key, role) - set(needed) for role, needed in NEEDED_FOR.items()}
    assert more.pop("ReaderPolicyArn") == set()
    assert list(more.values()) == [OF_THE_KEY] * 3


@pytest.mark.parametrize("role", NEEDED_FOR)
def test_what_a_role_is_not_granted_is_denied(stack: Stack, role: str) -> None:
    sqs = stack.cloud.role(stack.document(role)).client("sqs")
    other = stack.cloud.client("sqs").create_queue(QueueName=uuid.uuid4().hex)["QueueUrl"]
    urls = {
        "Queue": stack.outputs["QueueUrl"],
        "DeadLetterQueue": stack.outputs["DeadLetterQueueUrl"],
        "another queue": other,
    }
    granted = permissions(stack, role)
    for queue, url in urls.items():
        for action, call in CALLS.items():
            if (f"sqs:{action}", queue) not in granted:
                with pytest.raises(ClientError, match="AccessDenied"):
                    call(sqs, url)


# The pause ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def function(stack: Stack) -> Stack:
    """A function whose trigger a pause disables."""
    cloud = stack.cloud
    queues = deployed(cloud, Consumer="function")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("app/lambda_handler.py", "handler = None")
    bucket = uuid.uuid4().hex
    cloud.client("s3").create_bucket(Bucket=bucket)
    cloud.client("s3").put_object(Bucket=bucket, Key="zip", Body=content.getvalue())
    secret = cloud.client("secretsmanager").create_secret(Name=bucket, SecretString="x")["ARN"]
    return cloud.stack(
        "function.yaml", QueueStack=queues.name, CodeBucket=bucket, CodeKey="zip",
        MongoSecretArn=secret,
    )  # fmt: skip


def pause(stack: Stack, document: Mapping[str, Any]) -> None:
    """What `sqs pause` and `sqs resume` do with the triggers of a queue, and for its alarms, in the
    role of an operator with one more policy."""
    queues = Stack(stack.cloud, stack.given["QueueStack"], "queue.yaml")
    role = stack.cloud.role(queues.document("OperatorPolicyArn"), document)
    lambda_, cloudwatch = role.client("lambda"), role.client("cloudwatch")
    (mapping,) = stack.cloud.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    for is_enabled in (False, True):
        found = list(mappings.enabled(lambda_, mapping["EventSourceArn"]))
        list(mappings.switch(lambda_, found or [mapping["UUID"]], enabled=is_enabled))
        pause_metric.put(cloudwatch, "jobs", is_paused=not is_enabled)


def test_who_may_pause_switches_the_trigger_of_the_function_and_no_other(function: Stack) -> None:
    document = function.document("PausePolicyArn")
    pause(function, document)
    lambda_ = function.cloud.role(document).client("lambda")
    with pytest.raises(ClientError, match="AccessDenied"):
        lambda_.update_event_source_mapping(UUID=str(uuid.uuid4()), Enabled=False)
    with pytest.raises(ClientError, match="AccessDenied"):
        lambda_.delete_event_source_mapping(UUID=function.resources["Mapping"])


@pytest.mark.parametrize("missing", [0, 1])
def test_without_one_of_its_permissions_a_pause_fails(function: Stack, missing: int) -> None:
    document = function.document("PausePolicyArn")
    assert len(document["Statement"]) == 2
    document["Statement"].pop(missing)
    with pytest.raises(SqsError, match="AccessDenied"):
        pause(function, document)


def test_who_may_pause_writes_metrics_of_this_project_alone(function: Stack) -> None:
    statement = function.document("PausePolicyArn")["Statement"][1]
    # moto knows no conditions of CloudWatch.
    assert statement["Condition"] == {"StringEquals": {"cloudwatch:namespace": NAMESPACE}}


#: A call of each action on a queue.
CALLS: Mapping[str, Callable[[Any, str], Any]] = {
    "SendMessage": lambda sqs, url: sqs.send_message(QueueUrl=url, MessageBody="x"),
    "ReceiveMessage": lambda sqs, url: sqs.receive_message(QueueUrl=url),
    "DeleteMessage": lambda sqs, url: sqs.delete_message(QueueUrl=url, ReceiptHandle="x"),
    "ChangeMessageVisibility": lambda sqs, url: sqs.change_message_visibility(
        QueueUrl=url, ReceiptHandle="x", VisibilityTimeout=0
    ),
    "GetQueueAttributes": lambda sqs, url: sqs.get_queue_attributes(QueueUrl=url),
    "SetQueueAttributes": lambda sqs, url: sqs.set_queue_attributes(
        QueueUrl=url, Attributes={"VisibilityTimeout": "1"}
    ),
    "PurgeQueue": lambda sqs, url: sqs.purge_queue(QueueUrl=url),
    "DeleteQueue": lambda sqs, url: sqs.delete_queue(QueueUrl=url),
    "ListDeadLetterSourceQueues": lambda sqs, url: sqs.list_dead_letter_source_queues(QueueUrl=url),
    "TagQueue": lambda sqs, url: sqs.tag_queue(QueueUrl=url, Tags={"a": "b"}),
    "AddPermission": lambda sqs, url: sqs.add_permission(
        QueueUrl=url, Label="x", AWSAccountIds=["1"], Actions=["SendMessage"]
    ),
}
