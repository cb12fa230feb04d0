"""`make deploy` and `make destroy`, against a server that stands in for AWS."""

import base64
import hashlib
import io
import json
import os
import re
import stat
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import artifacts, deploy
from tests.cloudformation.cloud import Cloud

pytestmark = pytest.mark.slow

REGION = "us-east-1"

#: The account of the server.
ACCOUNT = "123456789012"

IMAGE = "registry.example.com/worker:1"

Run = Callable[..., tuple[int, str]]

#: Docker, as far as `deploy` uses it. It notes its arguments, and what comes on stdin. A push puts
#: an image into the repository.
DOCKER = """#!{python}
import boto3, pathlib, sys
MANIFEST = '{{"mediaType": "application/vnd.docker.distribution.manifest.v2+json"}}'
said = sys.stdin.read() if "login" in sys.argv else ""
with pathlib.Path({log!r}).open("a") as log:
    print(*sys.argv[1:], said, file=log)
if sys.argv[1] == "push":
    name, tag = sys.argv[2].rpartition("/")[2].split(":")
    ecr = boto3.client("ecr", "us-east-1")
    ecr.put_image(repositoryName=name, imageTag=tag, imageManifest=MANIFEST)
"""


@pytest.fixture
def stage() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def zips(tmp_path: Path) -> Path:
    """The directory with what `make lambda` builds: something for each processor."""
    directory = tmp_path / "dist"
    directory.mkdir()
    for architecture in ("x86_64", "arm64"):
        with zipfile.ZipFile(directory / f"function-{architecture}.zip", "w") as archive:
            archive.writestr(f"{architecture}.py", "")
    return directory


@pytest.fixture
def run(
    cloud: Cloud,
    stage: str,
    zips: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command for this stage. Returns its status, and what it printed."""
    for name, value in cloud.owner.environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str, answer: str = "") -> tuple[int, str]:
        command, *rest = arguments
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        status = deploy.main([command, "--stage", stage, *rest], pause=0.01, zips=zips)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.fixture
def secret(cloud: Cloud) -> str:
    made = cloud.client("secretsmanager").create_secret(
        Name=f"mongo-{uuid.uuid4().hex[:8]}", SecretString="mongodb://localhost/registrations"
    )
    return f"MongoSecretArn={made['ARN']}"


@pytest.fixture
def network(cloud: Cloud) -> list[str]:
    """The parameters that name a network that exists."""
    ec2 = cloud.client("ec2")
    (vpc,) = ec2.describe_vpcs()["Vpcs"][:1]
    of_it = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    subnets = [each["SubnetId"] for each in ec2.describe_subnets(Filters=of_it)["Subnets"]]
    groups = [each["GroupId"] for each in ec2.describe_security_groups(Filters=of_it)[
        "SecurityGroups"
    ]]  # fmt: skip
    return [
        f"VpcId={vpc['VpcId']}",
        f"TaskSubnetIds={','.join(subnets)}",
        f"PublicSubnetIds={','.join(subnets)}",
        f"TaskSecurityGroupIds={groups[0]}",
    ]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A docker on the PATH, and the file with what it was called with."""
    log, program = tmp_path / "docker.log", tmp_path / "docker"
    program.write_text(DOCKER.format(python=sys.executable, log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    log.touch()
    return log


def queue(cloud: Cloud, stage: str) -> tuple[Any, str]:
    sqs = cloud.client("sqs")
    return sqs, sqs.get_queue_url(QueueName=f"registrations-{stage}")["QueueUrl"]


def attributes(sqs: Any, url: str) -> dict[str, str]:
    return dict(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"])


def stacks(cloud: Cloud, stage: str) -> dict[str, str]:
    found = cloud.client("cloudformation").describe_stacks()["Stacks"]
    return {
        each["StackName"].rpartition("-")[2]: each["StackStatus"]
        for each in found
        if each["StackName"].startswith(f"registrations-{stage}-")
        and each["StackStatus"] != "DELETE_COMPLETE"
    }


def test_one_command_makes_queue_network_and_worker_and_one_takes_them_away(
    run: Run, cloud: Cloud, stage: str, secret: str
) -> None:
    status, printed = run("deploy", "--network", f"ImageUri={IMAGE}", secret)
    assert status == 0, printed
    assert set(stacks(cloud, stage)) >= {"queue", "network", "service"}
    assert "Add     Queue (AWS::SQS::Queue)" in printed
    url = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/registrations-{stage}"
    assert f"QueueUrl={url}" in printed
    cluster = f"registrations-{stage}-service"
    (service,) = cloud.client("ecs").describe_services(cluster=cluster, services=["worker"])[
        "services"
    ]
    described = cloud.client("ecs").describe_task_definition(
        taskDefinition=service["taskDefinition"]
    )
    (container,) = described["taskDefinition"]["containerDefinitions"]
    given = {each["name"]: each["value"] for each in container["environment"]}
    assert container["image"] == IMAGE
    assert given["AWS_SQS_QUEUE_URL"] == url
    status, printed = run("destroy", "--yes")
    assert (status, stacks(cloud, stage)) == (0, {}), printed


def test_a_second_run_has_nothing_to_do_and_needs_no_parameters(
    run: Run, cloud: Cloud, stage: str, secret: str, network: list[str]
) -> None:
    run("deploy", f"ImageUri={IMAGE}", secret, *network, "MaxTasks=7")
    status, printed = run("deploy", f"ImageUri={IMAGE}")
    assert status == 0, printed
    assert printed.count("nothing to do.") == len(stacks(cloud, stage))
    targets = cloud.client("application-autoscaling").describe_scalable_targets(
        ServiceNamespace="ecs", ResourceIds=[f"service/registrations-{stage}-service/worker"]
    )["ScalableTargets"]
    assert [each["MaxCapacity"] for each in targets] == [7]
    names = [f"registrations-{stage}-{name}" for name in stacks(cloud, stage)]
    for name in names:
        left = cloud.client("cloudformation").list_change_sets(StackName=name)["Summaries"]
        assert all(each["ExecutionStatus"] != "UNAVAILABLE" for each in left)


def test_a_change_is_shown_and_then_made_but_not_by_a_dry_run(
    run: Run, cloud: Cloud, stage: str
) -> None:
    change = ("--consumer", "none", "WorkerVisibilityTimeout=90")
    run("deploy", "--consumer", "none")
    sqs, url = queue(cloud, stage)
    for more, after in ((["--dry-run"], "60"), ([], "90")):
        status, printed = run("deploy", *more, *change)
        assert status == 0, printed
        assert "Modify  Queue (AWS::SQS::Queue)" in printed
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
        assert found["Attributes"]["VisibilityTimeout"] == after


def test_a_dry_run_shows_all_it_can_and_leaves_nothing(
    run: Run, cloud: Cloud, stage: str, secret: str
) -> None:
    status, printed = run("deploy", "--dry-run", "--network", secret)
    assert status == 0, printed
    assert "Add     Queue (AWS::SQS::Queue)" in printed
    assert "which needs Docker" in printed
    assert f"registrations-{stage}-service: cannot be shown" in printed
    assert stacks(cloud, stage) == {}
    repositories = cloud.client("ecr").describe_repositories()["repositories"]
    assert f"registrations-{stage}" not in {each["repositoryName"] for each in repositories}


def test_a_missing_parameter_is_named_with_what_it_means(run: Run) -> None:
    status, printed = run("deploy", "--network", f"ImageUri={IMAGE}")
    assert status == 1
    assert "MongoSecretArn: Secret with the URI of MongoDB." in printed


def test_an_unknown_parameter_changes_nothing(run: Run, cloud: Cloud, stage: str) -> None:
    status, printed = run("deploy", "--consumer", "none", "MaxTask=3")
    assert (status, stacks(cloud, stage)) == (1, {})
    assert "MaxTask" in printed


def test_the_image_is_built_and_pushed_once_and_destroy_takes_it_and_the_bucket_away(
    run: Run, cloud: Cloud, stage: str, secret: str, network: list[str], docker: Path
) -> None:
    status, printed = run("deploy", secret, *network)
    assert status == 0, printed
    tag = f"x86_64-{artifacts.digest_of(artifacts.ROOT / each for each in artifacts.IMAGE_SOURCES)}"
    host = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
    uri = f"{host}/registrations-{stage}:{tag}"
    said = docker.read_text().splitlines()
    assert [line.split()[0] for line in said] == ["version", "build", "login", "push"]
    assert said[1].startswith(f"build --platform linux/amd64 --tag {uri} ")
    assert said[2].startswith(f"login --username AWS --password-stdin {host} ")
    (repository,) = cloud.client("ecr").describe_repositories(
        repositoryNames=[f"registrations-{stage}"]
    )["repositories"]
    assert repository["imageTagMutability"] == "IMMUTABLE"
    docker.write_text("")
    status, printed = run("deploy")
    assert (status, docker.read_text()) == (0, "")
    bucket = f"registrations-{stage}-{ACCOUNT}-{REGION}"
    artifacts.Bucket(cloud.client("s3"), bucket, REGION).upload(docker)
    status, printed = run("destroy", "--yes")
    assert status == 0, printed
    assert f"s3://{bucket}: deleted." in printed
    assert f"image repository registrations-{stage}: deleted." in printed
    assert run("destroy", "--yes")[0] == 0


def test_without_docker_it_says_what_needs_it_before_the_service_is_touched(
    run: Run,
    cloud: Cloud,
    stage: str,
    secret: str,
    network: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    status, printed = run("deploy", secret, *network)
    assert status == 1
    assert "needs a running Docker" in printed
    assert "service" not in stacks(cloud, stage)


def test_destroy_asks_leaves_the_messages_and_the_next_deploy_takes_them_back(
    run: Run, cloud: Cloud, stage: str
) -> None:
    run("deploy", "--consumer", "none")
    sqs, url = queue(cloud, stage)
    sqs.send_message(QueueUrl=url, MessageBody="kept")
    for answer in ("", "yes\n", "other\n"):
        status, printed = run("destroy", answer=answer)
        assert (status, "Nothing was deleted." in printed) == (1, True)
        assert "queue" in stacks(cloud, stage)
    status, printed = run("destroy", answer=f"{stage}\n")
    assert status == 0, printed
    assert "The queues and their messages stay" in printed
    assert f"/{ACCOUNT}/registrations-{stage}: stays, with 1 messages." in printed
    assert stacks(cloud, stage) == {}
    status, printed = run("deploy", "--consumer", "none")
    assert status == 0, printed
    (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
    assert message["Body"] == "kept"


def test_queues_that_are_taken_back_are_shown_as_they_are_and_then_changed_to_the_template(
    run: Run, cloud: Cloud, stage: str
) -> None:
    run("deploy", "--consumer", "function")  # The function has no secret, so it stops there.
    sqs, url = queue(cloud, stage)
    assert attributes(sqs, url)["VisibilityTimeout"] == "210"
    run("destroy", "--yes")
    status, printed = run("deploy", "--dry-run", "--consumer", "none")
    assert status == 0, printed
    assert "Import  Queue (AWS::SQS::Queue)" in printed
    assert "Import  DeadLetterQueue (AWS::SQS::Queue)" in printed
    assert "the rest cannot be shown before that." in printed
    assert stacks(cloud, stage) == {}
    status, printed = run("deploy", "--consumer", "none", "MaxReceiveCount=12")
    assert status == 0, printed
    assert "Modify  Queue (AWS::SQS::Queue)" in printed
    assert re.search(rf"^QueueUrl=\S+/{ACCOUNT}/registrations-{stage}$", printed, re.MULTILINE)
    found = attributes(sqs, url)
    assert found["VisibilityTimeout"] == "60"
    assert json.loads(found["RedrivePolicy"])["maxReceiveCount"] == 12
    assert "OnlyByTls" in found["Policy"]
    assert run("deploy", "--consumer", "none")[1].count("nothing to do.") == 2


def test_a_dead_letter_queue_whose_queue_is_gone_is_taken_back_alone(
    run: Run, cloud: Cloud, stage: str
) -> None:
    run("deploy", "--consumer", "none")
    sqs, url = queue(cloud, stage)
    sqs.send_message(QueueUrl=f"{url}-dlq", MessageBody="kept")
    run("destroy", "--yes")
    sqs.delete_queue(QueueUrl=url)
    status, printed = run("deploy", "--consumer", "none")
    assert status == 0, printed
    assert "Import  Queue " not in printed
    (message,) = sqs.receive_message(QueueUrl=f"{url}-dlq")["Messages"]
    assert message["Body"] == "kept"
    assert json.loads(attributes(sqs, queue(cloud, stage)[1])["RedrivePolicy"])


def test_messages_that_a_key_has_encrypted_are_taken_back_with_the_key(
    run: Run, cloud: Cloud, stage: str
) -> None:
    run("deploy", "--consumer", "none", "Encryption=kms", "Topic=true")
    sqs, url = queue(cloud, stage)
    key = attributes(sqs, url)["KmsMasterKeyId"]
    kms = cloud.client("kms")
    policy = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    status, printed = run("destroy", "--yes")
    assert f"KMS key {key.rpartition('/')[2]}: stays" in printed
    status, printed = run("deploy", "--consumer", "none", "Encryption=sqs")
    assert (status, "encrypted by its key" in printed, stacks(cloud, stage)) == (1, True, {})
    # Nobody has to remember how the queue was encrypted.
    status, printed = run("deploy", "--consumer", "none", "Topic=true")
    assert status == 0, printed
    assert "Import  Key (AWS::KMS::Key)" in printed
    for each in (url, f"{url}-dlq"):
        assert attributes(sqs, each)["KmsMasterKeyId"] == key
    again = kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
    assert json.loads(again) == json.loads(policy)
    consumer = cloud.client("iam")
    outputs = dict(line.partition("=")[::2] for line in printed.splitlines() if "=" in line)
    arn = outputs["ConsumerPolicyArn"]
    version = consumer.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document = consumer.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]
    assert key in json.dumps(document["Document"])
    assert run("deploy", "--consumer", "none")[1].count("nothing to do.") == 2


def test_queues_that_a_strange_key_encrypts_are_left_alone(
    run: Run, cloud: Cloud, stage: str
) -> None:
    cloud.client("sqs").create_queue(
        QueueName=f"registrations-{stage}", Attributes={"KmsMasterKeyId": "alias/other"}
    )
    status, printed = run("deploy", "--consumer", "none")
    assert (status, "alias/other" in printed, stacks(cloud, stage)) == (1, True, {})


# The function -------------------------------------------------------------------------------------


def function_of(cloud: Cloud, stage: str) -> dict[str, Any]:
    """The function, and its code as Lambda has it."""
    name = f"registrations-{stage}-function"
    found = cloud.client("lambda").get_function(FunctionName=name)
    return dict(found["Configuration"])


def sha256_of(file: Path) -> str:
    """The hash that Lambda gives for a zip."""
    return base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()


def test_one_command_makes_the_queue_and_the_function_with_its_trigger(
    run: Run, cloud: Cloud, stage: str, secret: str, zips: Path
) -> None:
    status, printed = run("deploy", "--consumer", "function", secret)
    assert status == 0, printed
    assert set(stacks(cloud, stage)) == {"queue", "alarms", "function", "dashboard"}
    made = function_of(cloud, stage)
    assert made["CodeSha256"] == sha256_of(zips / "function-x86_64.zip")
    assert made["Handler"] == "app.lambda_handler.handler"
    variables = made["Environment"]["Variables"]
    sqs, url = queue(cloud, stage)
    assert variables["AWS_SQS_QUEUE_URL"].endswith(f"/{ACCOUNT}/registrations-{stage}")
    assert "MONGO_URI" not in variables
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn", "VisibilityTimeout"])
    (trigger,) = cloud.client("lambda").list_event_source_mappings(
        FunctionName=made["FunctionName"]
    )["EventSourceMappings"]
    assert trigger["EventSourceArn"] == found["Attributes"]["QueueArn"]
    assert trigger["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    needed = 6 * made["Timeout"] + trigger["MaximumBatchingWindowInSeconds"]
    assert int(found["Attributes"]["VisibilityTimeout"]) >= needed
    board = cloud.client("cloudwatch").get_dashboard(
        DashboardName=f"registrations-{stage}-dashboard"
    )
    assert f"registrations-{stage}" in board["DashboardBody"]
    status, printed = run("deploy", "--consumer", "function")
    assert (status, printed.count("nothing to do.")) == (0, 4), printed


def test_a_new_zip_changes_the_function_and_destroy_takes_it_away_but_not_the_messages(
    run: Run, cloud: Cloud, stage: str, secret: str, zips: Path
) -> None:
    run("deploy", "--consumer", "function", secret)
    sqs, url = queue(cloud, stage)
    sqs.send_message(QueueUrl=url, MessageBody="kept")
    file = zips / "function-x86_64.zip"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("more.py", "")
    status, printed = run("deploy", "--consumer", "function")
    assert status == 0, printed
    assert "Modify  Function (AWS::Lambda::Function)" in printed
    assert function_of(cloud, stage)["CodeSha256"] == sha256_of(file)
    status, printed = run("destroy", "--yes")
    assert status == 0, printed
    assert stacks(cloud, stage) == {}
    assert f"/{ACCOUNT}/registrations-{stage}: stays, with 1 messages." in printed


def test_the_next_deploy_takes_the_zip_for_the_processor_that_the_function_has(
    run: Run, cloud: Cloud, stage: str, secret: str, zips: Path
) -> None:
    run("deploy", "--consumer", "function", secret, "Architecture=arm64")
    status, printed = run("deploy", "--consumer", "function")
    assert status == 0, printed
    made = function_of(cloud, stage)
    assert made["Architectures"] == ["arm64"]
    assert made["CodeSha256"] == sha256_of(zips / "function-arm64.zip")


def test_a_function_in_the_network_of_the_stage_has_the_address_of_its_gateway(
    run: Run, cloud: Cloud, stage: str, secret: str
) -> None:
    status, printed = run("deploy", "--consumer", "function", "--network", secret)
    assert status == 0, printed
    network = function_of(cloud, stage)["VpcConfig"]
    ec2 = cloud.client("ec2")
    (group,) = ec2.describe_security_groups(GroupIds=network["SecurityGroupIds"])["SecurityGroups"]
    assert group["VpcId"] in printed
    tables = ec2.describe_route_tables(
        Filters=[{"Name": "association.subnet-id", "Values": network["SubnetIds"]}]
    )["RouteTables"]
    ways = [route.get("NatGatewayId") for table in tables for route in table["Routes"]]
    assert any(ways)


def test_a_worker_takes_over_from_a_function_whose_trigger_is_off_and_back(
    run: Run, cloud: Cloud, stage: str, secret: str, network: list[str]
) -> None:
    def visibility() -> str:
        sqs, url = queue(cloud, stage)
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
        return str(found["Attributes"]["VisibilityTimeout"])

    def triggers() -> int:
        name = f"registrations-{stage}-function"
        found = cloud.client("lambda").list_event_source_mappings(FunctionName=name)
        return len(found["EventSourceMappings"])

    run("deploy", "--consumer", "function", secret)
    assert (visibility(), triggers()) == ("210", 1)
    status, printed = run("deploy", "--consumer", "function", "Trigger=off")
    assert (status, triggers()) == (0, 0), printed
    status, printed = run("deploy", f"ImageUri={IMAGE}", secret, *network)
    assert (status, visibility(), triggers()) == (0, "60", 0), printed
    service = f"registrations-{stage}-service"
    cloud.client("cloudformation").delete_stack(StackName=service)
    status, printed = run("deploy", "--consumer", "function", "Trigger=on")
    assert (status, visibility(), triggers()) == (0, "210", 1), printed


@pytest.mark.parametrize("consumer", ["worker", "function"])
def test_what_the_queue_was_given_before_is_given_to_its_consumer_too(
    run: Run, cloud: Cloud, stage: str, secret: str, network: list[str], consumer: str
) -> None:
    given = ("MaxReceiveCount=20", "WorkerVisibilityTimeout=120")
    run("deploy", "--consumer", "none", *given)
    of_it = {"worker": [f"ImageUri={IMAGE}", *network], "function": []}
    status, printed = run("deploy", "--consumer", consumer, secret, *of_it[consumer])
    assert status == 0, printed
    if consumer == "function":
        variables = function_of(cloud, stage)["Environment"]["Variables"]
        assert int(variables["SQS_MAX_RECEIVE_COUNT"]) == 20
        return
    described = cloud.client("ecs").describe_task_definition(
        taskDefinition=f"registrations-{stage}-service-worker"
    )
    (container,) = described["taskDefinition"]["containerDefinitions"]
    values = {each["name"]: each["value"] for each in container["environment"]}
    assert (values["SQS_MAX_RECEIVE_COUNT"], values["SQS_VISIBILITY_TIMEOUT"]) == ("20", "120")


def test_without_a_zip_it_says_how_to_build_one_before_the_queue_is_touched(
    run: Run, cloud: Cloud, stage: str, secret: str, zips: Path
) -> None:
    (zips / "function-x86_64.zip").unlink()
    status, printed = run("deploy", "--consumer", "function", secret)
    assert (status, "Run `make lambda`" in printed) == (1, True)
    assert stacks(cloud, stage) == {}


def test_a_file_is_uploaded_once_by_the_hash_of_its_content(
    cloud: Cloud, stage: str, tmp_path: Path
) -> None:
    client = cloud.client("s3")
    bucket = artifacts.Bucket(client, f"registrations-{stage}", "eu-central-1")
    file = tmp_path / "function-arm64.zip"
    keys = []
    for content in (b"one", b"one", b"two"):
        file.write_bytes(content)
        bucket.upload(file)
        keys.append(bucket.key_of(file))
    assert keys[0] == keys[1] != keys[2]
    stored = client.list_objects_v2(Bucket=bucket.name)["Contents"]
    assert {each["Key"] for each in stored} == set(keys)
    public = client.get_public_access_block(Bucket=bucket.name)["PublicAccessBlockConfiguration"]
    assert set(public.values()) == {True}
