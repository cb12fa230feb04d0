"""The zip of the Lambda function has what the function imports, and nothing else."""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from infra.function_zip import canonical, is_needed, packages, requirements

ROOT = Path(__file__).parents[2]

#: Packages that are not imported here, and why they are in the zip.
ONLY_SOMETIMES = {"dnspython"}  # For a MONGO_URI that begins with mongodb+srv://.

#: Imports a handler and opens what it opens in Lambda, but for connections. The given modules
#: cannot be imported.
PROGRAM = """
import importlib, json, sys

for module in json.loads(sys.argv[1]):
    sys.modules[module] = None
sys.path.insert(0, sys.argv[2])
handler = importlib.import_module(sys.argv[3])
if sys.argv[3] == "app.api_handler":
    handler.handler.open()
from app.celery import app
from sqs_broker.options import Options
from sqs_broker.sqs.boto import Boto, quick_client
app.loader.import_default_modules()
app.finalize()
options = Options.read(app.conf.broker_transport_options)
Boto(options).open()
quick_client(options, "secretsmanager")
import app.models
app.models.connect()
print(json.dumps([name for name, module in sys.modules.items() if module]))
"""


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    """The top-level modules of each listed package."""
    found: dict[str, set[str]] = {canonical(name): set() for name in packages()}
    for module, distributions in packages_distributions().items():
        for distribution in distributions:
            if canonical(distribution) in found:
                found[canonical(distribution)].add(module)
    return found


@pytest.fixture(scope="module")
def imported(modules: dict[str, set[str]]) -> set[str]:
    """The modules that the function imports if it has only the packages of the list."""
    return modules_of("app.lambda_handler", modules)


@pytest.fixture(scope="module")
def imported_by_api(modules: dict[str, set[str]]) -> set[str]:
    """The modules that the HTTP API as a function imports."""
    return modules_of("app.api_handler", modules)


def modules_of(handler: str, modules: dict[str, set[str]]) -> set[str]:
    listed = {"app", "sqs_broker"}.union(*modules.values())
    others = sorted(packages_distributions().keys() - listed)
    assert "flower" in others
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(others), str(ROOT), handler],
        env={
            "AWS_REGION": "us-east-1",
            "AWS_SQS_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/1/jobs",
            "AWS_SQS_DLQ_URL": "https://sqs.us-east-1.amazonaws.com/1/jobs-dlq",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "MONGO_URI": "mongodb://127.0.0.1:1/test",
            "API_KEYS": f"name:{'0' * 64}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_functions_need_no_package_that_is_not_in_the_list(
    imported: set[str], imported_by_api: set[str]
) -> None:
    assert "app.tasks" in imported
    assert "app.api.routes" in imported_by_api


def test_each_package_of_the_list_is_imported(
    imported: set[str], imported_by_api: set[str], modules: dict[str, set[str]]
) -> None:
    used = imported | imported_by_api
    unused = {name for name, names in modules.items() if not names & used}
    assert unused == ONLY_SOMETIMES


def test_the_function_imports_nothing_of_a_worker_that_it_does_not_need(imported: set[str]) -> None:
    heavy = {
        "app.api",
        "fastapi",
        "app.startup",
        "app.flower",
        "sqs_broker.tools.flower.pages",
        "celery.bin",
        "celery.worker.consumer",
        "celery.worker.request",
        "celery.concurrency.prefork",
        "kombu.asynchronous",
        "kombu.transport.SQS",
        "sqs_broker.control.plane",
        "sqs_broker.sqs.engine",
        "sqs_broker.tools",
        "sqs_broker.worker.consumer",
        "sqs_broker.worker.request",
    }
    assert heavy & imported == set()


def test_each_package_has_a_version() -> None:
    assert [line.partition("==")[0] for line in requirements()] == packages()


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("botocore/data/sqs/2012-11-05/service-2.json.gz", True),
        ("botocore/data/endpoints.json", True),
        ("botocore/data/ec2/2016-11-15/service-2.json.gz", False),
        ("boto3/data/ec2/2016-11-15/resources-1.json", False),
        ("boto3/session.py", True),
        ("mongoengine/document.py", True),
        ("billiard/tests/test_x.py", False),
        ("pymongo-4.20.0.dist-info/METADATA", True),
        ("pymongo-4.20.0.dist-info/RECORD", False),
    ],
)
def test_only_what_the_function_uses_is_taken_out_of_a_wheel(name: str, needed: bool) -> None:
    assert is_needed(name) is needed
