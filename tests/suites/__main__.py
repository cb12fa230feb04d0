"""See the package."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devstack import mongo, ports, sqs
from devstack.process import Process
from sqs_broker.rules.canvas import BUILT_IN
from tests.suites import kombu_list
from tests.suites.results import Expected, Results

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

    @property
    def files(self) -> list[str]:
        return [file_of(module) for module in self.tests]


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
        options=("-o", "python_classes=Test*", "-W", "ignore", "--timeout=120"),
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

#: Most unexpected failures that are run again. More of them have a cause that is not time.
MOST_AGAIN = 10


def main(arguments: Sequence[str]) -> int:
    """Run the suites. The status is 0 if exactly the expected tests fail."""
    if shutil.which("redis-server") is None:
        print("redis-server is missing: sudo apt-get install redis-server", file=sys.stderr)
        return 2
    results, expected = Results(), Expected.listed()
    with tempfile.TemporaryDirectory(prefix="suites-") as directory:
        home = Path(directory)
        install_tools(home / "site")
        print("Running the integration tests of Celery and kombu: half an hour.", flush=True)
        tests = {suite.name: download(suite, home) for suite in SUITES}
        results.not_as_listed = list(kombu_list.differences(tests["kombu"]))
        with servers(home / "servers") as environment:
            for suite in SUITES:
                results.read(run(suite, tests[suite.name], environment, *arguments, *suite.files))
        results.passed_again = set(passed_again(results.unexpected(expected), tests))
    is_whole = not arguments
    for line in results.lines(expected, is_whole=is_whole):
        print(line)
    return 0 if results.is_as_expected(expected, is_whole=is_whole) else 1


def passed_again(names: Sequence[str], tests: Mapping[str, Path]) -> Iterator[str]:
    """Run each of these tests by itself, with new servers; those that pass. What the tests before
    it left, or a machine that was busy with them, can be no cause then."""
    if len(names) > MOST_AGAIN:
        print(f"{len(names)} tests failed that should not have: none is run again.", flush=True)
        return
    for number, name in enumerate(names):
        module, _, rest = name.partition("::")
        (suite,) = (suite for suite in SUITES if module in suite.tests)
        print(f"Running again by itself: {name}", flush=True)
        again = Results()
        with servers(tests[suite.name].parent / f"again-{number}") as environment:
            again.read(run(suite, tests[suite.name], environment, f"{file_of(module)}::{rest}"))
        if name in again.passed:
            yield name


def run(suite: Suite, tests: Path, environment: Mapping[str, str], *arguments: str) -> Path:
    """Run tests of a suite: the file with their results, which is beside the tests."""
    report = tests.parent / f"{suite.name}.xml"
    plugins = (part for plugin in suite.plugins for part in ("-p", plugin))
    subprocess.run(
        [
            sys.executable, "-m", "pytest", *plugins, "-q", "-ra", "--tb=short",
            "-p", "no:cacheprovider", f"--junitxml={report}", *suite.options, *arguments,
        ],
        cwd=tests,
        env=os.environ | environment | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(tests.parent / "site"),
        },
    )  # fmt: skip
    return report


def file_of(module: str) -> str:
    """The file of a module of tests."""
    return f"t/integration/test_{module}.py"


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
    """Servers of their own, in a new directory: SQS, MongoDB, Redis. The variables that name
    them."""
    home.mkdir()
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
            # Some tests look for lines of this level.
            "WORKER_LOGLEVEL": "INFO",
        }


@contextmanager
def redis(home: Path) -> Iterator[int]:
    """A Redis server that keeps nothing; its port."""
    port = ports.preferred_or_any(None)
    command = ["redis-server", "--bind", ports.HOST, "--port", str(port), "--save", ""]
    with Process("redis", command, log=home / "redis.log", grace=5) as process:
        process.wait_until_listening(port, 20)
        yield port


sys.exit(main(sys.argv[1:]))
