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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devstack import mongo, ports, sqs
from devstack.process import Process
from sqs_broker.rules.canvas import BUILT_IN
from tests.suites import kombu_list

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Suite:
    """The tests of a source distribution."""

    distribution: str
    tests: tuple[str, ...]
    """Files of its t/integration, without `test_` and `.py`."""
    plugins: tuple[str, ...] = ()
    ours: Path | None = None
    """A file of this directory that becomes one of them."""
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.distribution.partition("==")[0]


SUITES = (
    Suite(
        "celery==5.7.0",
        ("canvas", "tasks", "inspect", "security", "serialization"),
        plugins=("celery.contrib.pytest", "plugin"),
    ),
    # Its tests know only transports that kombu has, so a file of ours asks for this one.
    Suite(
        "kombu==5.7.0",
        ("kombu",),
        ours=Path(__file__).with_name("kombu_tests.py"),
        options=("-o", "python_classes=Test*", "-W", "ignore"),
    ),
)

#: What the suites need beside Celery and this project's own development tools.
TOOLS = (
    "freezegun==1.5.5",
    "pytest-click==1.1.0",
    "pytest-order==1.5.0",
    "pytest-subtests==0.15.0",
    "redis==8.1.0",
)

#: What is taken from the distribution, below its top folder.
WANTED = (["t"], ["pyproject.toml"])

EXPECTED = Path(__file__).with_name("expected.toml")


@dataclass
class Results:
    """The tests of a run by how they ended."""

    passed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    not_as_listed: list[str] = field(default_factory=list)
    """How kombu's own unit tests differ from the list of them."""


def main(arguments: Sequence[str]) -> int:
    """Run the suites. The status is 0 if exactly the expected tests fail."""
    if shutil.which("redis-server") is None:
        print("redis-server is missing: sudo apt-get install redis-server", file=sys.stderr)
        return 2
    results = Results()
    with (
        tempfile.TemporaryDirectory(prefix="suites-") as directory,
        servers(Path(directory)) as environment,
    ):
        home = Path(directory)
        install_tools(home / "site")
        print("Running the integration tests of Celery and kombu: half an hour.", flush=True)
        for suite in SUITES:
            tests = download(suite, home)
            if suite.name == "kombu":
                results.not_as_listed = list(kombu_list.differences(tests))
            run(suite, tests, environment, arguments)
            read(home / f"{suite.name}.xml", results)
    return compare(results, is_whole=not arguments)


def run(
    suite: Suite, tests: Path, environment: Mapping[str, str], arguments: Sequence[str]
) -> None:
    """Run a suite, which writes its results to a file beside its tests."""
    home = tests.parent
    plugins = (part for plugin in suite.plugins for part in ("-p", plugin))
    subprocess.run(
        [
            sys.executable, "-m", "pytest", *plugins,
            "-q", "-x" if "-x" in arguments else "-ra", "--tb=short", "--timeout=120",
            "-p", "no:cacheprovider", f"--junitxml={home / suite.name}.xml", *suite.options,
            *(a for a in arguments if a != "-x"),
            *(f"t/integration/test_{name}.py" for name in suite.tests),
        ],
        cwd=tests,
        env=os.environ | environment | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(home / "site"),
        },
    )  # fmt: skip


def install_tools(site: Path) -> None:
    """What the suites need, in a directory of its own."""
    pip("install", "--no-deps", "--target", str(site), *TOOLS)
    (site / "sqs_broker").symlink_to(ROOT / "sqs_broker")
    # Celery's default app would read that of this project, if it is installed.
    (site / "celeryconfig.py").touch()
    (site / "plugin.py").symlink_to(Path(__file__).with_name("plugin.py"))


def download(suite: Suite, home: Path) -> Path:
    """The tests of a suite, from its source distribution."""
    pip("download", "--no-deps", "--no-binary", ":all:", "-d", str(home), suite.distribution)
    (archive,) = home.glob(f"{suite.name}-*.tar.gz")
    with tarfile.open(archive) as tar:
        # Only the tests: the code is that of the environment.
        wanted = [m for m in tar.getmembers() if m.name.split("/")[1:2] in WANTED]
        tar.extractall(home, members=wanted, filter="data")
    tests = home / archive.name.removesuffix(".tar.gz")
    if suite.ours is not None:
        shutil.copy(suite.ours, tests / "t" / "integration" / f"test_{suite.name}.py")
    return tests


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


def read(report: Path, results: Results) -> None:
    """Add the results that pytest has written."""
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
    for line in results.not_as_listed:
        print(line)
    return 1 if new or gone or results.not_as_listed else 0


sys.exit(main(sys.argv[1:]))
