"""Uploads what stacks refer to: the zip of the function, and the image of the worker.

Both are named by the SHA-256 of their content. So an unchanged one is not uploaded again, a name
always means the same content, and a stack changes only if the content does.
"""

import base64
import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from infra.stacks import StackError

ROOT = Path(__file__).resolve().parents[1]

#: What the Dockerfile copies, and itself.
IMAGE_SOURCES = (
    "Dockerfile", "constraints.txt", "pyproject.toml", "README.md", "LICENSE", "celeryconfig.py",
    "flowerconfig.py", "app", "sqs_broker",
)  # fmt: skip

#: Docker's names of the processors that service.yaml names.
PLATFORMS = {"X86_64": "linux/amd64", "ARM64": "linux/arm64"}

#: The region whose buckets have no LocationConstraint.
FIRST_REGION = "us-east-1"


def digest_of(paths: Iterable[Path]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of files, and of all files in directories,
    with their names."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                content = file.read_bytes()
                digest.update(f"{file.relative_to(path.parent)}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()[:16]


class Bucket:
    """The bucket of a stage, for zip files. Nothing is created before the first upload."""

    def __init__(self, client: Any, name: str, region: str) -> None:
        self._client = client
        self.name = name
        self._region = region

    def key_of(self, file: Path) -> str:
        """The key that a file has, or will have."""
        return f"{file.stem}-{digest_of([file])}{file.suffix}"

    def has(self, key: str) -> bool:
        """Whether a file was uploaded before."""
        try:
            self._client.head_object(Bucket=self.name, Key=key)
        except ClientError as exc:
            if exc.response["Error"]["Code"] in ("404", "NoSuchBucket", "NoSuchKey"):
                return False
            raise
        return True

    def upload(self, file: Path) -> None:
        """Upload a file, unless it was uploaded before."""
        key = self.key_of(file)
        if not self.has(key):
            self._create()
            self._client.put_object(Bucket=self.name, Key=key, Body=file.read_bytes())

    def delete(self) -> bool:
        """Delete the bucket with all files. Returns False if there is none."""
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
            for page in pages:
                keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
                if keys:
                    self._client.delete_objects(Bucket=self.name, Delete={"Objects": keys})
            self._client.delete_bucket(Bucket=self.name)
        except ClientError as exc:
            if exc.response["Error"]["Code"] == "NoSuchBucket":
                return False
            raise
        return True

    def _create(self) -> None:
        where: dict[str, Any] = {}
        if self._region != FIRST_REGION:
            where["CreateBucketConfiguration"] = {"LocationConstraint": self._region}
        try:
            self._client.create_bucket(Bucket=self.name, **where)
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
                raise
        self._client.put_public_access_block(
            Bucket=self.name,
            PublicAccessBlockConfiguration={
                "BlockPublicAcls": True,
                "IgnorePublicAcls": True,
                "BlockPublicPolicy": True,
                "RestrictPublicBuckets": True,
            },
        )


class Repository:
    """The image repository of a stage. Nothing is created before the first push."""

    def __init__(self, client: Any, name: str, account: str, region: str) -> None:
        self._client = client
        self._name = name
        suffix = ".cn" if region.startswith("cn-") else ""
        partition = "aws-cn" if suffix else "aws"
        self._host = f"{account}.dkr.ecr.{region}.amazonaws.com{suffix}"
        self.arn = f"arn:{partition}:ecr:{region}:{account}:repository/{name}"

    def tag_of(self, architecture: str) -> str:
        """The tag of the image of the present sources."""
        sources = [ROOT / name for name in IMAGE_SOURCES]
        return f"{architecture.lower()}-{digest_of(sources)}"

    def uri_of(self, tag: str) -> str:
        """The name of an image for Docker and ECS."""
        return f"{self._host}/{self._name}:{tag}"

    def has(self, tag: str) -> bool:
        """Whether an image was pushed before."""
        try:
            self._client.describe_images(repositoryName=self._name, imageIds=[{"imageTag": tag}])
        except ClientError as exc:
            if exc.response["Error"]["Code"] in ("ImageNotFoundException", NO_REPOSITORY):
                return False
            raise
        return True

    def push(self, architecture: str) -> None:
        """Build the image and push it, unless that was done before. Raises StackError if there is
        no Docker, or if it fails."""
        tag = self.tag_of(architecture)
        if self.has(tag):
            return
        docker = shutil.which("docker")
        if docker is None or not _runs(docker):
            raise StackError(
                "The image must be built and pushed, which needs a running Docker: install it, or "
                "run this on a machine that has it. To use another image, give ImageUri."
            )
        self._create()
        uri = self.uri_of(tag)
        platform = PLATFORMS[architecture]
        _call([docker, "build", "--platform", platform, "--tag", uri, str(ROOT)])
        user, password = self._login()
        login = [docker, "login", "--username", user, "--password-stdin", self._host]
        _call(login, given=password)
        _call([docker, "push", uri])

    def delete(self) -> bool:
        """Delete the repository with all images. Returns False if there is none."""
        try:
            self._client.delete_repository(repositoryName=self._name, force=True)
        except ClientError as exc:
            if exc.response["Error"]["Code"] == NO_REPOSITORY:
                return False
            raise
        return True

    def _create(self) -> None:
        try:
            self._client.create_repository(
                repositoryName=self._name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )
        except ClientError as exc:
            if exc.response["Error"]["Code"] != "RepositoryAlreadyExistsException":
                raise

    def _login(self) -> tuple[str, str]:
        token = self._client.get_authorization_token()["authorizationData"][0]
        user, _, password = base64.b64decode(token["authorizationToken"]).decode().partition(":")
        return user, password


NO_REPOSITORY = "RepositoryNotFoundException"


def _runs(docker: str) -> bool:
    return subprocess.run([docker, "version"], capture_output=True, timeout=60).returncode == 0


def _call(command: list[str], *, given: str | None = None) -> None:
    done = subprocess.run(command, input=given, text=True, timeout=3600)
    if done.returncode:
        raise StackError(f"{command[0]} {command[1]} has failed (status {done.returncode}).")
