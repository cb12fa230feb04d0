"""A local AWS with SQS triggers of Lambda functions (ministack), in an environment of its own."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from devstack import ports
from devstack.process import Process
from devstack.sqs import ACCESS_KEY, REGION
from devstack.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "tests" / "ministack.txt"

#: Seconds until it answers, and for pip.
START_SECONDS = 30
PIP_SECONDS = 300

SERVICES = "sqs,lambda,iam,kms,logs,secretsmanager,sts,s3,cloudformation"

TEMPLATES = ROOT / "infra"

#: Seconds until a stack is complete.
STACK_SECONDS = 60


@dataclass(frozen=True)
class Ministack:
    """A running server."""

    process: Process
    endpoint_url: str

    def client(self, service: str) -> Any:
        """A boto3 client of one of its services. The caller must close it."""
        return boto3.client(
            service,  # type: ignore[call-overload]  # the stubs accept literal names only
            region_name=REGION,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=ACCESS_KEY,
        )

    def stack(self, name: str, template: str, **parameters: str) -> dict[str, str]:
        """Deploy a template of `infra/`. Returns the outputs."""
        given = [{"ParameterKey": key, "ParameterValue": text} for key, text in parameters.items()]
        with closing(self.client("cloudformation")) as client:
            client.create_stack(
                StackName=name,
                TemplateBody=(TEMPLATES / template).read_text(),
                Parameters=given,
                Capabilities=["CAPABILITY_IAM"],
            )

            def described() -> Any:
                return client.describe_stacks(StackName=name)["Stacks"][0]

            wait_until(
                lambda: not described()["StackStatus"].endswith("_IN_PROGRESS"),
                STACK_SECONDS,
                f"the stack {name}",
            )
            made = described()
        assert made["StackStatus"] == "CREATE_COMPLETE", made
        return {each["OutputKey"]: each["OutputValue"] for each in made["Outputs"]}


def python() -> Path:
    """The interpreter of ministack's environment, which is made at the first call."""
    version = ".".join(map(str, sys.version_info[:2]))
    directory = ROOT / ".local" / f"ministack-{version}"
    stamp, interpreter = directory / "installed", directory / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(directory, with_pip=True, clear=True)
        pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True, timeout=PIP_SECONDS)
        stamp.write_text(REQUIREMENTS.read_text())
    return interpreter


@contextmanager
def running(directory: Path, *, checks_signatures: bool = False) -> Iterator[Ministack]:
    """A server on a free port of 127.0.0.1, until the end of the block. It runs functions in the
    Python of this process, whatever their runtime is. With `checks_signatures` it
    refuses wrong ones of users and sessions; `ACCESS_KEY` may do all."""
    port = ports.preferred_or_any(None)
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(directory),
        "TMPDIR": str(directory),
        # Otherwise it listens on all addresses, and for MQTT on another port.
        "BIND_HOST": ports.HOST,
        # The host in the URLs of queues.
        "MINISTACK_HOST": ports.HOST,
        "IOT_MTLS_ENABLED": "0",
        "GATEWAY_PORT": str(port),
        "SERVICES": SERVICES,
        "AWS_ENDPOINT_URL": f"http://{ports.HOST}:{port}",
        "AUTH": str(checks_signatures).lower(),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
    }
    log = directory / "ministack.log"
    with Process(
        "ministack",
        [python(), "-m", "ministack"],
        log=log,
        grace=1,
        environment=environment,
        directory=directory,
    ) as process:
        server = Ministack(process, environment["AWS_ENDPOINT_URL"])
        wait_until(lambda: _answers(server), START_SECONDS, "an answer of ministack")
        yield server


def _answers(server: Ministack) -> bool:
    server.process.check()
    client = server.client("sqs")
    try:
        client.list_queues()
    except Exception:
        return False
    finally:
        client.close()
    return True
