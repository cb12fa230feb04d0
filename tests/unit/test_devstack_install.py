"""`make run` and `make test` install with uv if there is one, and with pip otherwise; they say what
happens, and show an installer's output only if it fails."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devstack.waiting import wait_until
from tests.growing import whole_lines

#: Seconds that nothing here comes near to.
DEADLINE = 30

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "devstack" / "install.py"

#: Stands in place of a program: notes its arguments, prints a line, and ends with a status.
STAND_IN = """#!{python}
import json, sys
with open({notes!r}, "a") as notes:
    notes.write(json.dumps([{name!r}, *sys.argv[1:]]) + chr(10))
print("Collecting something")
sys.exit({status})
"""

Make = Callable[..., None]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def make(tmp_path: Path, notes: Path) -> Make:
    """Makes a program that only notes how it is called: `uv`, or the environment's `python`."""

    def make(name: str, status: int = 0) -> None:
        directory = {"uv": tmp_path / "path", "python": tmp_path / "venv" / "bin"}[name]
        directory.mkdir(parents=True, exist_ok=True)
        program = directory / name
        program.write_text(
            STAND_IN.format(python=sys.executable, notes=str(notes), name=name, status=status)
        )
        program.chmod(0o755)

    return make


def install(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(INSTALL), str(tmp_path / "venv"), "--group", "devstack"],
        cwd=ROOT,
        env={"PATH": str(tmp_path / "path"), "LANG": os.environ.get("LANG", "C.UTF-8")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(notes: Path) -> list[list[str]]:
    return [json.loads(line) for line in whole_lines(notes)]


PIP = ["python", "-m", "pip", "install", "-c", "constraints.txt"]


def test_without_uv_pip_installs(tmp_path: Path, make: Make, notes: Path) -> None:
    make("python")
    ran = install(tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert calls(notes) == [
        ["python", "-m", "pip", "--version"],
        [*PIP, "--upgrade", "pip"],
        [*PIP, "--build-constraint", "constraints.txt", "--group", "devstack"],
    ]


def test_with_uv_pip_is_not_asked(tmp_path: Path, make: Make, notes: Path) -> None:
    make("python")
    make("uv")
    assert install(tmp_path).returncode == 0
    [_, asked] = calls(notes)
    python = str(tmp_path / "venv" / "bin" / "python")
    constrained = ["-c", "constraints.txt", "-b", "constraints.txt"]
    assert asked == [
        "uv", "pip", "install", "--python", python, *constrained, "--group", "devstack",
    ]  # fmt: skip


def test_if_uv_fails_pip_installs(tmp_path: Path, make: Make, notes: Path) -> None:
    make("python")
    make("uv", status=2)
    ran = install(tmp_path)
    assert ran.returncode == 0
    assert "uv failed; pip installs instead." in ran.stderr
    assert calls(notes)[-1][-2:] == ["--group", "devstack"]


def test_it_says_what_it_does_without_the_installer_s_output(tmp_path: Path, make: Make) -> None:
    make("python")
    said = install(tmp_path).stderr
    assert "installing packages with pip (half a minute to two) …" in said
    assert "is ready after" in said
    assert "Collecting" not in said


def test_a_failure_shows_the_end_of_the_output(tmp_path: Path, make: Make) -> None:
    make("python")
    # It is there, but its pip cannot install.
    program = tmp_path / "venv" / "bin" / "python"
    program.write_text(
        program.read_text().replace("sys.exit(0)", "sys.exit('install' in sys.argv)")
    )
    ran = install(tmp_path)
    assert ran.returncode == 1
    assert "Collecting something\nThe installation failed: see above." in ran.stderr


@pytest.fixture
def gate(tmp_path: Path, make: Make) -> Path:
    """Installers wait until this file exists."""
    make("python")
    gate = tmp_path / "gate"
    program = tmp_path / "venv" / "bin" / "python"
    wait = (
        "import pathlib, time\n"
        f"while 'install' in sys.argv and not pathlib.Path({str(gate)!r}).exists():\n"
        "    time.sleep(0.01)\n"
    )
    program.write_text(program.read_text().replace("print(", wait + "print("))
    return gate


@contextmanager
def installing(tmp_path: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An installation in a process group of its own, which Ctrl+C would reach."""
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, str(INSTALL), str(tmp_path / "venv"), "--group", "devstack"],
            cwd=ROOT,
            env={"PATH": str(tmp_path / "path"), "LANG": os.environ.get("LANG", "C.UTF-8")},
            stderr=stderr,
            process_group=0,
            # The tests may run where Ctrl+C is ignored, as in the background of a shell.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # All have ended.
                os.killpg(process.pid, signal.SIGKILL)


def test_two_at_once_take_turns_and_the_second_changes_nothing(
    tmp_path: Path, gate: Path, notes: Path
) -> None:
    logs = (tmp_path / "first", tmp_path / "second")
    with installing(tmp_path, logs[0]) as first:
        wait_until(lambda: len(calls(notes)) == 2, DEADLINE, "an installer")
        with installing(tmp_path, logs[1]) as second:
            wait_until(lambda: "Another process installs" in logs[1].read_text(), DEADLINE, "it")
            gate.touch()
            assert (first.wait(DEADLINE), second.wait(DEADLINE)) == (0, 0)
    assert [call[3:4] for call in calls(notes)] == [["--version"], ["install"], ["install"]]
    assert "is ready after" in logs[1].read_text()


def test_a_later_one_installs_again(tmp_path: Path, make: Make, notes: Path) -> None:
    make("python")
    assert (install(tmp_path).returncode, install(tmp_path).returncode) == (0, 0)
    assert len(calls(notes)) == 6


def test_ctrl_c_is_one_line(tmp_path: Path, gate: Path, notes: Path) -> None:
    log = tmp_path / "log"
    with installing(tmp_path, log) as process:
        wait_until(lambda: len(calls(notes)) == 2, DEADLINE, "an installer")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE) == 130
    assert log.read_text().splitlines()[-1].startswith("The installation was interrupted.")
    assert "Traceback" not in log.read_text()


def test_make_run_installs_only_what_it_needs() -> None:
    dry = subprocess.run(
        ["make", "--dry-run", "run", f"PYTHON={sys.executable}", "VENV=nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "install.py nowhere --group devstack -e ./sqs_broker -e '.[api]'" in dry
    assert "--group dev " not in dry


def test_make_test_says_at_once_how_long_it_takes() -> None:
    dry = subprocess.run(
        ["make", "--dry-run", "test", f"PYTHON={sys.executable}", "VENV=nowhere"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    before, _, _ = dry.partition("-m pytest")
    assert "The tests take up to five minutes" in before
