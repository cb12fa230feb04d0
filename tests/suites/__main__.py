"""See the package."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devstack import mongo, ports, sqs
from devstack.process import Process
from sqs_broker.rules.canvas import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]

CELERY = "celery==5.7.0"

#: What the suite needs beside Celery and this project's own development tools.
TOOLS = (
    "freezegun==1.5.5",
    "pytest-click==1.1.0",
    "pytest-order==1.5.0",
    "pytest-subtests==0.15.0",
)

TESTS = ("canvas", "tasks", "inspect", "security", "serialization")

#: What is taken from the distribution, below its top folder.
WANTED = (["t"], ["pyproject.toml"])

EXPECTED = Path(__file__).with_name("expected.toml")


@dataclass
class Results:
    """The tests of a run by how they ended."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)


def main(arguments: Sequence[str]) -> int:
    """Run the suite. The status is 0 if exactly the expected tests fail."""
    if shutil.which("redis-server") is None:
        print("redis-server is missing: sudo apt-get install redis-server", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="suites-") as directory,
        servers(Path(directory)) as environment,
    ):
        home = Path(directory)
        suite = download(home)
        report = home / "report.xml"
        print("Running Celery's integration tests: about half an hour.", flush=True)
        subprocess.run(
            [
                sys.executable, "-m", "pytest", "-p", "celery.contrib.pytest", "-p", "plugin",
                "-q", "-x" if "-x" in arguments else "-ra", "--tb=short", "--timeout=120",
                "-p", "no:cacheprovider", f"--junitxml={report}",
                *(a for a in arguments if a != "-x"),
                *(f"t/integration/test_{name}.py" for name in TESTS),
            ],
            cwd=suite,
            env=os.environ | environment | {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
                "PYTHONPATH": str(home / "site"),
            },
        )  # fmt: skip
        results = read(report)
    return compare(results, is_whole=not arguments)


def download(home: Path) -> Path:
    """Celery's tests, from its source distribution, and the tools that they need."""
    pip("download", "--no-deps", "--no-binary", ":all:", "-d", str(home), CELERY)
    site = home / "site"
    pip("install", "--no-deps", "--target", str(site), *TOOLS)
    # Not the whole of this project: Celery's default app would read its celeryconfig.py.
    (site / "sqs_broker").symlink_to(ROOT / "sqs_broker")
    (site / "plugin.py").symlink_to(Path(__file__).with_name("plugin.py"))
    (archive,) = home.glob("celery-*.tar.gz")
    with tarfile.open(archive) as tar:
        # Only the tests: the code is that of the environment.
        wanted = [
            m for m in tar.getmembers() if m.name.split("/")[1:2] in (["t"], ["pyproject.toml"])
        ]
        tar.extractall(home, members=wanted, filter="data")
    return home / archive.name.removesuffix(".tar.gz")


def pip(*arguments: str) -> None:
    """Run this environment's pip."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True
    )


@contextmanager
def servers(home: Path) -> Iterator[dict[str, str]]:
    """Servers of their own for the suite: SQS, MongoDB, Redis. The variables that name them."""
    with (
        sqs.running(log=home / "sqs.log") as queues,
        mongo.running(data=home / "mongo", log=home / "mongod.log") as database,
        redis(home) as port,
    ):
        client = queues.client()
        pair = sqs.create_queues(client, "celery", visibility_timeout=60, max_receive_count=10)
        client.close()
        settings: dict[str, Any] = {
            "broker_url": "sqs://",
            "broker_transport_options": {
                "region": sqs.REGION,
                "endpoint_url": queues.endpoint_url,
                "credentials": {"aws_access_key_id": "test", "aws_secret_access_key": "test"},
                "predefined_queues": {
                    "celery": {"url": pair.url, "dead_letter_url": pair.dead_letter_url}
                },
                "wait_time_seconds": 1,
                "backoff_base": 0.01,
                # As many retries as Celery allows by default.
                "max_attempts": 4,
                # With the task of Celery's own tests that says whether a worker runs.
                "built_in_tasks": [*BUILT_IN, "celery.ping"],
                "control": {"database_uri": database.uri("control"), "database": "control"},
            },
        }
        yield {
            "TEST_BROKER": "sqs://",
            "TEST_BACKEND": f"redis://{ports.HOST}:{port}/0",
            "REDIS_HOST": ports.HOST,
            "REDIS_PORT": str(port),
            "SUITE_SETTINGS": json.dumps(settings),
        }


@contextmanager
def redis(home: Path) -> Iterator[int]:
    """A Redis server that keeps nothing; its port."""
    port = ports.preferred_or_any(None)
    command = ["redis-server", "--bind", ports.HOST, "--port", str(port), "--save", ""]
    with Process("redis", command, log=home / "redis.log", grace=5) as process:
        process.wait_until_listening(port, 20)
        yield port


def read(report: Path) -> Results:
    """The results that pytest has written."""
    results = Results()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        module = case.get("classname", "").removeprefix("t.integration.test_").replace(".", "::")
        name = f"{module}::{case.get('name')}"
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            results.failed.add(name)
        elif "skipped" in kinds:
            results.skipped.add(name)
        else:
            results.passed.add(name)
    # A test may have passed, and its teardown failed.
    results.passed -= results.failed
    return results


def compare(results: Results, *, is_whole: bool) -> int:
    """Print the results beside what is expected. The status is 0 if they agree."""
    lists: dict[str, Any] = tomllib.loads(EXPECTED.read_text())
    expected = {name: why for why, names in lists.items() for name in names["tests"]}
    new = sorted(results.failed - expected.keys())
    may_pass = {n for names in lists.values() if names.get("may_pass") for n in names["tests"]}
    gone = sorted(((expected.keys() - may_pass) & results.passed) if is_whole else ())
    print(
        f"{len(results.passed)} passed, {len(results.failed)} failed, "
        f"{len(results.skipped)} skipped; {len(expected)} failures are expected."
    )
    for name in new:
        print(f"not expected: {name}")
    for name in gone:
        print(f"expected to fail, but passed: {name}")
    return 1 if new or gone else 0


sys.exit(main(sys.argv[1:]))
