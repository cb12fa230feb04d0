"""A worker under a process manager that sends its signal to every process of the worker."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devstack import ports
from tests.acceptance.load import load
from tests.acceptance.worker import READY_SECONDS, ROOT, living
from tests.probe.project import PATIENCE, SOON, MakeProject, ProbeProject
from tests.services import wait_until

#: Seconds of a task that runs while its worker is stopped.
LONG = 3

#: Seconds after which honcho kills what is left, once a line has ended (honcho 2.0 manager.py).
KILL_WAIT = 5

WORKER = [sys.executable, "-m", "celery", "-A", "probe", "worker", "-l", "INFO", "-c", "2"]


class Supervisor(ABC):
    """Starts the worker of a probe project, and stops it, again and again."""

    def __init__(self, project: ProbeProject) -> None:
        self._project = project
        self._logs = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once the worker is ready."""
        log = self._project.directory / f"worker-{self._logs}.log"
        self._logs += 1
        self._process = self._started(log)
        wait_until(
            lambda: log.exists() and " ready." in log.read_text(), PATIENCE, f"worker ready: {log}"
        )

    def stop(self) -> None:
        """Returns once neither the supervisor nor a process of the worker is left."""
        assert self._process is not None
        self._tell()
        self._process.wait(PATIENCE)
        assert self.pids() == []

    def pids(self) -> list[int]:
        """The supervisor and what it has started: all that works in the project's directory."""
        return [pid for pid, *_ in living() if is_in(pid, self._project.directory)]

    def close(self) -> None:
        """Kill what is left."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(PATIENCE)

    @abstractmethod
    def _started(self, log: Path) -> "subprocess.Popen[bytes]": ...

    @abstractmethod
    def _tell(self) -> None: ...

    def _run(self, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("wb") as stream:
            return subprocess.Popen(
                command,
                cwd=self._project.directory,
                env={"PATH": os.environ["PATH"], "HOME": str(self._project.directory)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


class Systemd(Supervisor):
    """As KillMode=control-group, and as Heroku: a signal to each process, the main one first."""

    def _started(self, log: Path) -> "subprocess.Popen[bytes]":
        return self._run(WORKER, log)

    def _tell(self) -> None:
        for pid in sorted(self.pids()):
            os.kill(pid, signal.SIGTERM)


class Supervisord(Supervisor):
    """With stopasgroup: a signal to the worker's process group."""

    def _started(self, log: Path) -> "subprocess.Popen[bytes]":
        home = self._project.directory
        (home / "supervisord.conf").write_text(f"""
[supervisord]
nodaemon = true
logfile = {home}/supervisord.log
pidfile = {home}/supervisord.pid

[program:worker]
command = {" ".join(WORKER)}
directory = {home}
stopasgroup = true
killasgroup = true
stopwaitsecs = 120
redirect_stderr = true
stdout_logfile = {log}
""")
        return self._run([script("supervisord"), "-c", "supervisord.conf"], home / "supervisor.out")

    def _tell(self) -> None:
        assert self._process is not None
        self._process.terminate()


class Honcho(Supervisor):
    """It sends SIGTERM to the process group of each line of the Procfile."""

    beside = ""

    def _started(self, log: Path) -> "subprocess.Popen[bytes]":
        procfile = f"worker: {' '.join(WORKER)}\n{self.beside}"
        (self._project.directory / "Procfile").write_text(procfile)
        return self._run([script("honcho"), "start"], log)

    def _tell(self) -> None:
        # As a terminal does at Ctrl+C. What honcho starts has a session of its own.
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)


class HonchoUnderSystemd(Honcho):
    """A signal to each process, and honcho passes it on: the worker gets two."""

    def _tell(self) -> None:
        for pid in sorted(self.pids()):
            os.kill(pid, signal.SIGTERM)


class SupervisordUnderSystemd(Supervisord):
    """A signal to each process, and supervisord passes it on: the worker gets two."""

    def _tell(self) -> None:
        for pid in sorted(self.pids()):
            os.kill(pid, signal.SIGTERM)


class HonchoWithFlower(Honcho):
    """Once Flower has ended, honcho kills the worker after 5 s."""

    beside = "flower: sleep 1000\n"


class HonchoBeside(Honcho):
    """Flower ends after the worker, as in our own Procfile."""

    # By its file, because the probe project has an `app` of its own.
    beside = f"flower: {sys.executable} -P {ROOT}/app/beside.py sleep 1000\n"


def script(name: str) -> str:
    """A program that is installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name))


def is_in(pid: int, directory: Path) -> bool:
    """Whether a process works in this directory."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory
    except OSError:
        return False


@pytest.fixture(params=[Systemd, Supervisord, Honcho])
def supervise(
    request: pytest.FixtureRequest,
) -> Iterator[Callable[[ProbeProject], Supervisor]]:
    """Makes a supervisor, which does not outlive the test."""
    made: list[Supervisor] = []

    def make(project: ProbeProject) -> Supervisor:
        made.append(request.param(project))
        return made[-1]

    yield make
    for each in made:
        each.close()


def assert_each_ran_once(project: ProbeProject, sent: list[str]) -> None:
    starts = Counter(line["id"] for line in project.events(event="start"))
    ends = Counter(line["id"] for line in project.events(event="end"))
    assert ends == Counter(sent)
    assert starts == ends
    assert project.queues.dead_letters() == []


def assert_no_process_died(project: ProbeProject) -> None:
    log = project.worker_log()
    assert [line for line in log.splitlines() if "ERROR" in line or "exited with" in line] == []


def assert_what_runs_finishes(
    make_project: MakeProject, supervise: Callable[[ProbeProject], Supervisor]
) -> None:
    # Whatever counted as an attempt would be the last one.
    project = make_project(transport={"max_attempts": 1})
    supervisor = supervise(project)
    supervisor.start()
    sent = [project.send("work", LONG) for _ in range(2)]
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")

    supervisor.stop()

    assert_each_ran_once(project, sent)
    assert_no_process_died(project)
    assert project.queues.counts() == (0, 0, 0)


@pytest.mark.slow
def test_what_runs_finishes_when_the_supervisor_stops_the_worker(
    make_project: MakeProject, supervise: Callable[[ProbeProject], Supervisor]
) -> None:
    assert_what_runs_finishes(make_project, supervise)


@pytest.mark.slow
@pytest.mark.parametrize("supervise", [HonchoUnderSystemd, SupervisordUnderSystemd], indirect=True)
def test_what_runs_finishes_when_each_process_is_told_and_the_supervisor_passes_it_on(
    make_project: MakeProject, supervise: Callable[[ProbeProject], Supervisor]
) -> None:
    assert_what_runs_finishes(make_project, supervise)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_stops_under_load_count_nothing_lose_nothing_and_run_nothing_twice(
    make_project: MakeProject, supervise: Callable[[ProbeProject], Supervisor]
) -> None:
    project = make_project(transport={"max_attempts": 1})
    supervisor = supervise(project)
    with load(project, 0.5) as sent:
        for _ in range(10):
            done = len(project.events(event="end"))
            supervisor.start()
            wait_until(
                lambda done=done: len(project.events(event="end")) > done + 3,
                PATIENCE,
                "a busy worker",
            )
            supervisor.stop()
            wait_until(lambda: project.queues.counts()[1] == 0, SOON, "what was released")
    supervisor.start()
    project.wait_for_empty_queue(2 * PATIENCE)
    supervisor.stop()

    assert_each_ran_once(project, sent)
    assert_no_process_died(project)


@pytest.mark.slow
@pytest.mark.parametrize("supervise", [HonchoWithFlower], indirect=True)
def test_beside_a_program_that_ends_at_once_honcho_leaves_three_seconds(
    make_project: MakeProject, supervise: Callable[[ProbeProject], Supervisor]
) -> None:
    # docs/shutdown.md recommends so many.
    project = make_project(transport={"shutdown_timeout": 3})
    supervisor = supervise(project)
    supervisor.start()
    for _ in range(2):
        project.send("work", 60)
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")

    supervisor.stop()

    assert "sending SIGKILL" not in project.worker_log()
    wait_until(lambda: project.queues.counts() == (2, 0, 0), SOON, "what was released")


@pytest.mark.slow
@pytest.mark.parametrize("supervise", [HonchoBeside], indirect=True)
def test_a_program_of_the_procfile_that_ends_after_the_worker_leaves_it_its_time(
    make_project: MakeProject, supervise: Callable[[ProbeProject], Supervisor]
) -> None:
    project = make_project(transport={"max_attempts": 1})
    supervisor = supervise(project)
    supervisor.start()
    sent = [project.send("work", KILL_WAIT + 3) for _ in range(2)]
    wait_until(lambda: len(project.events(event="start")) == 2, PATIENCE, "tasks that run")

    supervisor.stop()

    assert_each_ran_once(project, sent)
    assert "sending SIGKILL" not in project.worker_log()
    assert project.queues.counts() == (0, 0, 0)


@pytest.mark.slow
def test_honcho_stops_the_whole_procfile(environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "honcho.log"
    port = str(ports.preferred_or_any(None))
    ours = {
        "FLOWER_PORT": port,
        "FLOWER_ADDRESS": ports.HOST,
        "API_PORT": "0",
        "API_PROCESSES": "2",
    }
    with log.open("wb") as stream:
        honcho = subprocess.Popen(
            [script("honcho"), "start", "-f", str(ROOT / "Procfile"), "-d", str(tmp_path)],
            env=environment | ours | {"WORKER_CONCURRENCY": "2", "SQS_WAIT_TIME": "1"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        said = (" ready.", "api.started", "Visit me at")
        wait_until(
            lambda: all(each in log.read_text() for each in said), READY_SECONDS, f"ready: {log}"
        )
        # A signal while honcho prints a line would break its own handler, which prints too.
        wait_until(lambda: time.time() - log.stat().st_mtime > 1, PATIENCE, f"silence: {log}")
        os.killpg(honcho.pid, signal.SIGTERM)
        assert honcho.wait(PATIENCE) == 128 + signal.SIGTERM
        assert [pid for pid, *_ in living() if is_in(pid, tmp_path)] == []
    finally:
        for pid in [pid for pid, *_ in living() if is_in(pid, tmp_path)]:
            os.kill(pid, signal.SIGKILL)
        honcho.wait(PATIENCE)
    text = log.read_text()
    assert "sending SIGKILL" not in text
    stopped = [line for line in text.splitlines() if "stopped (rc=" in line]
    assert ["worker.1" in line for line in stopped] == [True, False, False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_honcho_stops_the_worker_of_the_procfile(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "honcho.log"
    with log.open("wb") as stream:
        honcho = subprocess.Popen(
            [
                script("honcho"),
                "start",
                "-f",
                str(ROOT / "Procfile"),
                "-d",
                str(tmp_path),
                "worker",
            ],
            env=environment | {"WORKER_CONCURRENCY": "2", "SQS_WAIT_TIME": "1"},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: " ready." in log.read_text(), READY_SECONDS, f"worker ready: {log}")
        os.killpg(honcho.pid, number)
        assert honcho.wait(PATIENCE) == 128 + number
        assert [pid for pid, *_ in living() if is_in(pid, tmp_path)] == []
    finally:
        for pid in [pid for pid, *_ in living() if is_in(pid, tmp_path)]:
            os.kill(pid, signal.SIGKILL)
        honcho.wait(PATIENCE)
    said = log.read_text()
    assert '"event": "shutdown.begun"' in said
    assert '"level": "error"' not in said
    assert "sending SIGKILL" not in said
