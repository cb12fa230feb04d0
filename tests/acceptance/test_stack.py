"""`python -m devstack`, which is what `make run` and `make demo` start."""

import json
import os
import pty
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import boto3
import pytest
from pymongo import MongoClient

from devstack import ports, stack
from tests.services import wait_until

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
#: The longest grace of any process of the stack, and to spare.
STOP_SECONDS = 40
SERVING = "Serving until Ctrl+C"
NAMES = {
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SQS_QUEUE_URL",
    "AWS_SQS_DLQ_URL",
    "SQS_MAX_MESSAGE_BYTES",
    "MONGO_URI",
    "FLOWER_URL",
    "FLOWER_BASIC_AUTH",
    "API_URL",
    "API_KEY",
}


class Run:
    """One start of the stack. All its processes are known by a variable they inherit."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        under: Sequence[str] = (),
        terminal: int | None = None,
    ) -> None:
        self.directory = directory
        self.marker = f"DEVSTACK_RUN={uuid.uuid4().hex}"
        name, value = self.marker.split("=")
        directory.mkdir(parents=True, exist_ok=True)
        self.output = directory.parent / f"{value}.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "devstack", "--directory", directory, *options],
                cwd=ROOT,
                env=os.environ | {name: value},
                stdin=subprocess.DEVNULL,
                stdout=output if terminal is None else terminal,
                stderr=output,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_until_serving(self) -> None:
        def is_serving() -> bool:
            assert self.process.poll() is None, self.said
            return SERVING in self.said

        wait_until(is_serving, START_SECONDS, "a stack that serves")

    def processes(self) -> list[int]:
        """All that live, the servers, the worker and its pool among them."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and self.marker.encode() in _environ(entry)
        ]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_until_gone(self) -> int:
        """The exit status, once no process of the stack is left."""
        status = self.process.wait(STOP_SECONDS)
        wait_until(lambda: not self.processes(), STOP_SECONDS, "the end of every process")
        return status

    def environment(self) -> dict[str, str]:
        """What `sh` makes of stack.env."""
        script = f"set -a; . {shlex.quote(str(self.directory / 'stack.env'))}; env -0"
        printed = subprocess.run(
            ["sh", "-euc", script], env={}, capture_output=True, text=True, check=True, timeout=10
        ).stdout
        return dict(line.split("=", 1) for line in printed.split("\0") if line)


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


@contextmanager
def running(directory: Path, *options: str, **how: Any) -> Iterator[Run]:
    run = Run(directory, *options, **how)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.send(signal.SIGTERM)
        run.wait_until_gone()


@contextmanager
def occupied(port: int) -> Iterator[None]:
    """Somebody listens on the port: this test, or whoever does already."""
    with socket.socket() as listener:
        if ports.is_free(port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((ports.HOST, port))
            listener.listen()
        yield


def users(environment: dict[str, str]) -> list[dict[str, Any]]:
    with MongoClient(environment["MONGO_URI"]) as client:
        return list(client.get_default_database()["users"].find())


@contextmanager
def sqs_client(environment: dict[str, str]) -> Iterator[Any]:
    client = boto3.client(
        "sqs",
        region_name=environment["AWS_REGION"],
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    try:
        yield client
    finally:
        client.close()


def dead_letters(environment: dict[str, str]) -> int:
    with sqs_client(environment) as client:
        attributes = client.get_queue_attributes(
            QueueUrl=environment["AWS_SQS_DLQ_URL"], AttributeNames=["All"]
        )["Attributes"]
    return int(attributes["ApproximateNumberOfMessages"])


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A stack that found its ports busy, for tests that only look at it."""
    directory = tmp_path_factory.mktemp("serving") / "the stack"
    with ExitStack() as busy:
        busy.enter_context(occupied(stack.SQS_PORT))
        busy.enter_context(occupied(stack.MONGO_PORT))
        busy.enter_context(occupied(stack.FLOWER_PORT))
        with running(directory) as run:
            run.wait_until_serving()
            yield run
            run.send(signal.SIGTERM)
            assert run.wait_until_gone() == 0, run.said


def test_the_demo_shows_a_user_by_each_door_and_exits_with_0(tmp_path: Path) -> None:
    preferred = (stack.SQS_PORT, stack.MONGO_PORT, stack.FLOWER_PORT)
    are_free = all(map(ports.is_free, preferred))
    with running(tmp_path / "local", "--demo") as run:
        assert run.process.wait(START_SECONDS + STOP_SECONDS) == 0, run.said
        assert not run.processes()

    assert run.said.count('"user_id"') == 2
    assert '"source": "celery"' in run.said
    assert '"source": "json"' in run.said
    assert ("is busy" not in run.said) == are_free
    assert not (tmp_path / "local" / "stack.env").exists()


def test_stack_env_gives_a_shell_all_that_a_client_needs(serving: Run) -> None:
    environment = serving.environment()

    assert environment.keys() >= NAMES
    assert (serving.directory / "stack.env").stat().st_mode & 0o777 == 0o600
    assert len(users(environment)) >= 2
    assert dead_letters(environment) == 0


def test_a_busy_port_gets_another_one_said_aloud(serving: Run) -> None:
    assert f"port {stack.SQS_PORT} is busy" in serving.said
    assert f"port {stack.MONGO_PORT} is busy" in serving.said
    assert f"port {stack.FLOWER_PORT} is busy" in serving.said


def test_flower_shows_the_queues_to_whoever_has_the_login_of_stack_env(serving: Run) -> None:
    environment = serving.environment()
    request = urllib.request.Request(f"{environment['FLOWER_URL']}/broker")
    with pytest.raises(HTTPError, match="401") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()

    login = b64encode(environment["FLOWER_BASIC_AUTH"].encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert f"{stack.QUEUE}-dlq" in answer.read().decode()
    # The terminal may be seen by others.
    assert environment["FLOWER_BASIC_AUTH"] not in serving.said


def test_the_servers_listen_on_127_0_0_1_only(serving: Run) -> None:
    environment = serving.environment()
    names = ("AWS_ENDPOINT_URL", "MONGO_URI", "FLOWER_URL", "API_URL")
    addresses = " ".join(environment[name] for name in names)
    taken = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", addresses)]
    assert len(taken) == 4
    for port in taken:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        # A server on all addresses of this machine would answer here too.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), timeout=5):  # noqa: PT011
            pass


def test_the_commands_it_prints_register_more_users(serving: Run) -> None:
    commands = "\n".join(line for line in serving.said.splitlines() if line.startswith("  "))
    before = len(users(serving.environment()))

    shown = commands[commands.index("set -a") :]
    listed = subprocess.run(
        ["sh", "-euc", shown], cwd=Path.cwd(), capture_output=True, text=True, timeout=60
    )

    assert listed.returncode == 0, listed.stderr
    assert "kim" in listed.stdout
    wait_until(lambda: len(users(serving.environment())) == before + 2, 20, "two more users")


def test_the_curl_commands_of_the_readme_register_a_user(serving: Run, tmp_path: Path) -> None:
    (tmp_path / ".local").symlink_to(serving.directory)
    (commands,) = re.findall(r"```sh\n([^`]*curl [^`]*)```", (ROOT / "README.md").read_text())

    ran = subprocess.run(
        ["sh", "-euc", commands], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr
    answers = re.sub(r"\}\s*\{", "}\n{", ran.stdout).splitlines()
    pending, registered = map(json.loads, answers)
    assert (pending["state"], registered["state"]) == ("pending", "registered")
    # The second command has the id that the first one answers.
    assert pending["id"] == registered["id"]
    assert registered["user"]["userId"] == "curl"


def test_a_second_stack_in_the_same_directory_says_so_in_one_line(serving: Run) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "devstack", "--directory", serving.directory],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert second.returncode == 1
    assert second.stdout == ""
    (line,) = second.stderr.splitlines()
    assert "Another stack already runs" in line
    assert serving.environment()


@pytest.mark.slow
def test_killed_or_stopped_it_leaves_no_process_and_keeps_queue_and_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_PROCESSES", "2")
    with running(tmp_path / "local") as killed:
        killed.wait_until_serving()
        environment = killed.environment()
        with sqs_client(environment) as client:
            client.send_message(QueueUrl=environment["AWS_SQS_DLQ_URL"], MessageBody="kept")
        stored = {user["_id"] for user in users(environment)}
        # The stack itself, and for servers, worker, Flower and API their guards, and two children
        # of the pool, and two of the API, which may begin when it already listens.
        everyone = 1 + 5 * 2 + 2 + 2
        wait_until(lambda: len(killed.processes()) == everyone, 30, f"{everyone} processes")
        killed.send(signal.SIGKILL)
        killed.wait_until_gone()

    with running(tmp_path / "local") as interrupted:
        interrupted.wait_until_serving()
        environment = interrupted.environment()
        assert stored < {user["_id"] for user in users(environment)}
        assert dead_letters(environment) == 1
        interrupted.send(signal.SIGINT)
        assert interrupted.wait_until_gone() == 0


@pytest.mark.slow
def test_it_ends_with_one_line_when_one_of_its_processes_ends(tmp_path: Path) -> None:
    with running(tmp_path / "local") as run:
        run.wait_until_serving()
        (mongod,) = (pid for pid in run.processes() if _command(pid)[0].endswith("mongod"))
        os.kill(mongod, signal.SIGKILL)

        assert run.wait_until_gone() == 1

    assert run.said.splitlines()[-1].startswith("devstack: mongod ended with status 137")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_any_moment_of_its_start_the_next_start_works(tmp_path: Path) -> None:
    for _ in range(6):
        with running(tmp_path / "local") as run:
            moment = random.uniform(0, 5)
            try:
                run.process.wait(moment)
            except subprocess.TimeoutExpired:
                run.send(signal.SIGKILL)
            # At once, while the processes of this one may still be about.
            with running(tmp_path / "local", "--demo") as following:
                status = following.process.wait(START_SECONDS + STOP_SECONDS)
                assert status == 0, f"killed after {moment:.2f} s, then: {following.said}"


@pytest.mark.slow
def test_killed_together_with_its_guards_it_leaves_no_process(tmp_path: Path) -> None:
    with running(tmp_path / "local") as run:
        run.wait_until_serving()
        ours = [pid for pid in run.processes() if "devstack" in " ".join(_command(pid))]
        assert len(ours) == 6
        for pid in ours:
            os.kill(pid, signal.SIGKILL)
        run.wait_until_gone()


@pytest.mark.slow
def test_it_stops_when_the_make_that_started_it_is_killed(tmp_path: Path) -> None:
    make = ["sh", "-c", '"$@"; true', "make"]
    with running(tmp_path / "local", "--with-parent", under=make) as run:
        run.wait_until_serving()
        run.send(signal.SIGKILL)
        run.wait_until_gone()


@pytest.mark.slow
def test_it_stops_when_its_terminal_is_gone(tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    with running(tmp_path / "local", terminal=terminal) as run:
        os.close(terminal)
        said = b""
        while SERVING.encode() not in said:
            said += os.read(ours, 4096)
        os.close(ours)
        assert run.wait_until_gone() == 0, run.said


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
