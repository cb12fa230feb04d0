"""Deploys a stage to AWS: `make deploy STAGE=dev`. Takes it away: `make destroy STAGE=dev`.

A stage is the stacks `registrations-STAGE-…`. Credentials and region come from where boto3 finds
them. docs/aws.md says what to give.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from infra.artifacts import Bucket, Repository
from infra.retained import Retained, find, key_of
from infra.stacks import Parameters, Plan, StackError, Stacks
from infra.templates import path_of, read

ROOT = Path(__file__).resolve().parents[1]

#: The stacks, by template, in the order in which they are deployed.
ORDER = ("queue", "network", "alarms", "service", "function", "dashboard")

#: The stacks for each consumer. The network is an option.
FOR_CONSUMER = {
    "worker": ("queue", "alarms", "service", "dashboard"),
    "function": ("queue", "alarms", "function", "dashboard"),
    "none": ("queue", "alarms"),
}

#: The zip of the function for each architecture that Lambda knows.
ZIP = "function-{}.zip"


class Aws:
    """The services of an account in a region. Raises StackError without credentials or region."""

    def __init__(self) -> None:
        # The name that the settings have; boto3 itself knows AWS_DEFAULT_REGION only.
        self._session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
        if self._session.region_name is None:
            raise StackError("No region is set. Set AWS_REGION or AWS_PROFILE.")
        self.region: str = self._session.region_name
        try:
            self.account: str = self.client("sts").get_caller_identity()["Account"]
        except (BotoCoreError, ClientError) as exc:
            raise StackError(f"AWS does not accept these credentials: {exc}") from exc

    def client(self, service: str) -> Any:
        """A client of a service."""
        return self._session.client(service)  # type: ignore[call-overload]  # literal names only


@dataclass(frozen=True)
class Stage:
    """The names of what belongs to a stage."""

    name: str

    def stack(self, template: str) -> str:
        """The name of the stack of a template."""
        return f"registrations-{self.name}-{template}"

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return f"registrations-{self.name}"

    @property
    def repository(self) -> str:
        """The name of the image repository."""
        return f"registrations-{self.name}"

    def bucket(self, aws: Aws) -> Bucket:
        """The bucket. Names of buckets are unique in the world."""
        name = f"registrations-{self.name}-{aws.account}-{aws.region}"
        return Bucket(aws.client("s3"), name, aws.region)

    def images(self, aws: Aws) -> Repository:
        """The image repository."""
        return Repository(aws.client("ecr"), self.repository, aws.account, aws.region)


@dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line."""

    consumer: str
    has_network: bool
    is_dry_run: bool
    given: Mapping[str, str]
    """Values of parameters. Each goes to all templates that have the parameter."""
    zips: Path
    """The directory with the zip files of the function."""

    @property
    def templates(self) -> list[str]:
        """The templates to deploy, in their order. Those that this release lacks are left out."""
        wanted = {*FOR_CONSUMER[self.consumer], *(["network"] if self.has_network else [])}
        return [name for name in ORDER if name in wanted and path_of(name).exists()]


# Deploy -------------------------------------------------------------------------------------------


class Deployment:
    """Deploys the stacks of a stage, one after the other."""

    def __init__(self, aws: Aws, stage: Stage, wanted: Wanted, stacks: Stacks) -> None:
        self._aws = aws
        self._stage = stage
        self._wanted = wanted
        self._stacks = stacks
        self._found: dict[str, str] = {}
        """Outputs of the stacks so far."""
        self._is_ahead = False
        """Whether a dry run has left out a change that later stacks may depend on."""

    def run(self) -> None:
        """Deploy. Raises StackError at the first stack that fails; those before it stay."""
        unknown = set(self._wanted.given) - set(_parameters_of(self._wanted.templates))
        if unknown:
            raise StackError(f"No template has the parameter {', '.join(sorted(unknown))}.")
        self._require_zip()
        for template in self._wanted.templates:
            self._deploy(template)
            self._found |= self._stacks.outputs(self._stage.stack(template))
        for name, value in sorted(self._found.items()):
            print(f"{name}={value}")

    def _deploy(self, template: str) -> None:
        stack = self._stage.stack(template)
        present = self._stacks.parameters(stack)
        made = dict(self._artifacts(template, present))
        retained = self._retained(stack) if template == "queue" else None
        if retained is not None and retained.has_key:
            made["Encryption"] = "kms"
        parameters = self._parameters(template, stack, present, made)
        if parameters is None:
            print(f"{stack}: cannot be shown before the stacks above are deployed.")
            return
        if retained is not None:
            self._take_back(stack, retained, parameters)
            if self._wanted.is_dry_run:
                print(f"{stack}: the rest cannot be shown before that.")
                return
        try:
            plan = self._stacks.plan(stack, path_of(template).read_text(), parameters)
        except StackError:
            # It may refer to what the changes above would have made.
            if self._is_ahead and self._stacks.status(stack) is None:
                print(f"{stack}: cannot be shown before the stacks above are deployed.")
                return
            raise
        if plan is None:
            print(f"{stack}: nothing to do.")
            return
        self._show(plan)
        if self._wanted.is_dry_run:
            self._is_ahead = True
            self._stacks.discard(plan)
            return
        self._stacks.execute(plan)
        print(f"{stack}: done.")

    def _retained(self, stack: str) -> Retained | None:
        """The queues that exist although their stack does not."""
        if not self._stacks.is_new(stack):
            return None
        name = self._wanted.given.get("QueueName") or self._stage.queue
        return find(self._aws.client("sqs"), self._aws.client("kms"), name)

    def _take_back(self, stack: str, retained: Retained, parameters: Parameters) -> None:
        """Make the stack of the queues that `destroy` has left, as they are."""
        if retained.has_key and parameters["Encryption"] != "kms":
            raise StackError(
                f"{stack}: the messages in the queue are encrypted by its key. Leave out "
                "Encryption, or empty and delete the queues."
            )
        name = {"QueueName": parameters["QueueName"]}
        plan = self._stacks.plan_import(stack, retained.template, name, retained.identifiers)
        self._show(plan)
        if self._wanted.is_dry_run:
            self._is_ahead = True
            self._stacks.discard(plan)
        else:
            self._stacks.execute(plan)

    def _show(self, plan: Plan) -> None:
        what = "is created" if plan.is_new else "changes"
        print(f"{plan.stack} {what}:")
        for change in plan.changes:
            print(change)

    def _artifacts(self, template: str, present: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Upload what a template refers to, and name it. It is for the processor that the stack has
        if nobody names another one."""
        known = read(template).get("Parameters", {})
        given = self._wanted.given
        architecture = self._architecture(known, present)
        if "ImageUri" in known and "ImageUri" not in given:
            images = self._stage.images(self._aws)
            uri = images.uri_of(tag := images.tag_of(architecture))
            if not images.has(tag):
                print(f"image {uri}: is built and pushed, which needs Docker.")
                if not self._wanted.is_dry_run:
                    images.push(architecture)
            yield "ImageUri", uri
            yield "RepositoryArn", images.arn
        if "CodeKey" in known and "CodeKey" not in given:
            yield from self._zip(architecture)

    def _require_zip(self) -> None:
        """Raise StackError if the zip of the function is missing, before the queue is changed for a
        function."""
        if "function" in self._wanted.templates and "CodeKey" not in self._wanted.given:
            present = self._stacks.parameters(self._stage.stack("function"))
            self._file(self._architecture(read("function")["Parameters"], present))

    def _architecture(self, known: Mapping[str, Any], present: Mapping[str, str]) -> str:
        """The processor that is asked for, or that the stack has."""
        default = known.get("Architecture", {}).get("Default", "")
        given = self._wanted.given.get("Architecture")
        return given or present.get("Architecture") or str(default)

    def _file(self, architecture: str) -> Path:
        file = self._wanted.zips / ZIP.format(architecture)
        if not file.exists():
            raise StackError(f"{file} does not exist. Run `make lambda`.")
        return file

    def _zip(self, architecture: str) -> Iterator[tuple[str, str]]:
        file = self._file(architecture)
        bucket = self._stage.bucket(self._aws)
        key = bucket.key_of(file)
        if not bucket.has(key):
            print(f"s3://{bucket.name}/{key}: is uploaded.")
            if not self._wanted.is_dry_run:
                bucket.upload(file)
        yield "CodeBucket", bucket.name
        yield "CodeKey", key

    def _parameters(
        self,
        template: str,
        stack: str,
        present: Mapping[str, str],
        artifacts: Mapping[str, str],
    ) -> Parameters | None:
        """The values of a template's parameters: what was given, what this stage is made of, what
        the stack has, or the default. None if a dry run cannot know one. Raises StackError with
        those that nobody gave."""
        known = {
            "Stage": self._stage.name,
            "QueueStack": self._stage.stack("queue"),
            "AlarmStack": self._stage.stack("alarms"),
            "QueueName": self._stage.queue,
            **({"Consumer": self._wanted.consumer} if self._wanted.consumer != "none" else {}),
            **self._found,
            **artifacts,
        }
        values: dict[str, str | None] = {}
        missing = []
        for name, about in read(template).get("Parameters", {}).items():
            if name in self._wanted.given:
                values[name] = self._wanted.given[name]
            elif name in known:
                values[name] = None if present.get(name) == known[name] else known[name]
            elif name in present:
                values[name] = None
            elif "Default" not in about:
                missing.append(f"  {name}: {about.get('Description', '')}")
        if missing and self._is_ahead:
            return None
        if missing:
            raise StackError("\n".join([f"{stack} needs PARAMETERS='NAME=value …' with", *missing]))
        return values


def _parameters_of(templates: Iterable[str]) -> Iterator[str]:
    for template in templates:
        yield from read(template).get("Parameters", {})


# Destroy ------------------------------------------------------------------------------------------


def destroy(aws: Aws, stage: Stage, stacks: Stacks) -> None:
    """Delete the stacks of a stage, its bucket and its image repository. The queues stay."""
    queues = stacks.outputs(stage.stack("queue"))
    for template in reversed(ORDER):
        if stacks.delete(stack := stage.stack(template)):
            print(f"{stack}: deleted.")
    if (bucket := stage.bucket(aws)).delete():
        print(f"s3://{bucket.name}: deleted.")
    if stage.images(aws).delete():
        print(f"image repository {stage.repository}: deleted.")
    sqs = aws.client("sqs")
    urls = [queues[name] for name in ("QueueUrl", "DeadLetterQueueUrl") if name in queues]
    found = {url: _attributes(sqs, url) for url in urls}
    for url, attributes in found.items():
        print(f"{url}: stays, with {_count(attributes)} messages.")
    for key in sorted(filter(None, {key_of(attributes) for attributes in found.values()})):
        print(f"KMS key {key}: stays, because it has encrypted the messages.")
    if queues:
        print("`make deploy` with the same STAGE takes them back. To delete a queue with its")
        print("messages: aws sqs delete-queue --queue-url URL")


def _attributes(sqs: Any, url: str) -> Mapping[str, str]:
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    return dict(found["Attributes"])


def _count(attributes: Mapping[str, str]) -> int:
    names = [
        "ApproximateNumberOfMessages",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateNumberOfMessagesDelayed",
    ]
    return sum(int(attributes[name]) for name in names)


def _confirmed(stage: Stage, aws: Aws) -> bool:
    print(f"This deletes the stacks of stage {stage.name} in account {aws.account}, {aws.region}.")
    print("The queues and their messages stay; nobody receives them any more.")
    try:
        return input(f"Type {stage.name} to go on: ").strip() == stage.name
    except EOFError:
        return False


# The command line ---------------------------------------------------------------------------------


def main(
    arguments: Sequence[str] | None = None, *, pause: float = 5.0, zips: Path = ROOT / "dist"
) -> int:
    """Run a command. Returns the exit status: 1 if it failed or was not confirmed. `pause`: seconds
    between two looks at a change. `zips`: the directory with the zip files of the function."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    deploy = commands.add_parser("deploy")
    deploy.add_argument("--consumer", choices=FOR_CONSUMER, default="worker")
    deploy.add_argument("--network", action="store_true", help="make a VPC with subnets too")
    deploy.add_argument("--dry-run", action="store_true", help="show the changes, make none")
    deploy.add_argument("parameters", nargs="*", metavar="NAME=value")
    destroying = commands.add_parser("destroy")
    destroying.add_argument("--yes", action="store_true", help="do not ask")
    for command in (deploy, destroying):
        command.add_argument("--stage", required=True, type=_stage)
    given = parser.parse_args(arguments)
    stage = Stage(given.stage)
    try:
        aws = Aws()
        stacks = Stacks(aws.client("cloudformation"), pause=pause)
        if given.command == "deploy":
            parameters = _read(given.parameters)
            wanted = Wanted(given.consumer, given.network, given.dry_run, parameters, zips)
            Deployment(aws, stage, wanted, stacks).run()
        elif given.yes or _confirmed(stage, aws):
            destroy(aws, stage, stacks)
        else:
            print("Nothing was deleted.")
            return 1
    except (StackError, BotoCoreError, ClientError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _stage(text: str) -> str:
    # Part of the name of a bucket: 63 characters together with account and region.
    if not (text.isascii() and text.isalnum() and text == text.lower() and len(text) <= 12):
        raise argparse.ArgumentTypeError("should be up to 12 lower-case letters and digits")
    return text


def _read(parameters: Iterable[str]) -> dict[str, str]:
    pairs = [parameter.partition("=") for parameter in parameters]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise StackError(f"Parameters are NAME=value. This is none: {', '.join(wrong)}.")
    return {name: value for name, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
