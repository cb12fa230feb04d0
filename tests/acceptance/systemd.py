"""A systemd of a test's own, which runs one unit as that of a machine does.

It is a user's manager in namespaces of its own (processes, mounts, cgroups), because the one of a
machine or a container may be missing. Its /run is a directory of the test.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.services import wait_until

MANAGER = Path("/lib/systemd/systemd")

PROGRAMS = ("unshare", "nsenter", "systemctl")

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup")

#: Seconds for what the manager does at once.
PATIENCE = 30

#: It runs as process 1 of its namespace. `$1` is the directory, `$2` the name of the unit.
INSIDE = f"""
mount -t cgroup2 none /sys/fs/cgroup && mount --bind "$1/run" /run || exit
export XDG_RUNTIME_DIR=/run SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_LOG_TARGET=console
{MANAGER} --user --unit="$2" &
wait
"""


class Systemd:
    """The manager and its unit."""

    def __init__(self, process: "subprocess.Popen[bytes]", unit: str) -> None:
        self._process = process
        self._unit = unit

    def properties(self) -> Mapping[str, str]:
        """What `systemctl show` says of the unit; nothing before the manager answers."""
        lines = self._systemctl("show", self._unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def stop(self) -> None:
        """`systemctl stop`, which returns once the unit has stopped."""
        self._systemctl("stop", self._unit).check_returncode()

    def kill_main_process(self) -> None:
        """SIGKILL for the main process alone."""
        self._systemctl("kill", "--kill-who=main", "--signal=KILL", self._unit).check_returncode()

    def wait_until_it_answers(self) -> None:
        """Returns once the manager knows the unit."""
        wait_until(self._first, PATIENCE, "its first process")
        wait_until(lambda: self.properties().get("LoadState") == "loaded", PATIENCE, "systemd")

    def _first(self) -> str:
        """The id of the first process of its namespaces."""
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def _systemctl(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["nsenter", "--target", self._first(), "--pid", "--mount", "--cgroup",
             "systemctl", "--user", *arguments],
            env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/run"},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )  # fmt: skip


def lacking() -> str | None:
    """What this machine lacks to run one; None if nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not MANAGER.exists() or missing:
        return "systemd and util-linux"
    hierarchy = _hierarchy()
    if os.getuid() != 0 or hierarchy is None or not os.access(hierarchy, os.W_OK):
        return "root, and a cgroup2 that it may write to"
    if not _may_unshare():
        return "the right to make namespaces and to mount"
    return None


def _may_unshare() -> bool:
    """A container may forbid it also to root."""
    trial = [*UNSHARE, "sh", "-c", "mount -t cgroup2 none /sys/fs/cgroup"]
    return subprocess.run(trial, capture_output=True, timeout=PATIENCE).returncode == 0


@contextmanager
def running(directory: Path, name: str, unit: str, own: str) -> Iterator[Systemd]:
    """Run a unit until the end of the block. `own` is a drop-in for it: what is different here."""
    units = directory / "units"
    (units / f"{name}.d").mkdir(parents=True)
    (units / name).write_text(unit)
    (units / f"{name}.d" / "here.conf").write_text(own)
    # All services ask for it.
    (units / "basic.target").write_text("[Unit]\nDescription=Basic\n")
    # Without this one it takes the machine for one that systemd has not started.
    (directory / "run" / "systemd" / "system").mkdir(parents=True)
    log = directory / "systemd.log"
    with _cgroup() as group, log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(group),
             *UNSHARE, "sh", "-c", INSIDE, "sh", str(directory), name],
            env={"PATH": os.environ["PATH"], "HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            made = Systemd(process, name)
            made.wait_until_it_answers()
            yield made
        finally:
            process.kill()
            process.wait()


@contextmanager
def _cgroup() -> Iterator[Path]:
    hierarchy = _hierarchy()
    assert hierarchy is not None
    made = hierarchy / f"test-{uuid.uuid4().hex}"
    made.mkdir()
    try:
        yield made
    finally:
        wait_until(lambda: _remove(made), PATIENCE, f"the end of all processes in {made}")


def _remove(group: Path) -> bool:
    with suppress(OSError):
        for below, *_ in os.walk(group, topdown=False):
            os.rmdir(below)
    return not group.exists()


def _hierarchy() -> Path | None:
    """Where cgroup2 is mounted."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(line[1]) for line in lines if line[2] == "cgroup2"), None)
