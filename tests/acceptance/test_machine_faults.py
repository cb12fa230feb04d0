"""This machine has too little for a while: no message is refused, none runs twice, and the worker
lives on; where it can only live half, it ends and says why."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from time import monotonic

import pytest

from tests.probe.project import PATIENCE, MakeProject, ProbeProject
from tests.services import wait_until

pytestmark = pytest.mark.slow

POOLS = ("prefork", "threads", "solo")

#: Stands before the probe's own code: while there is a file `no-threads`, no thread of these names
#: can start, as at a limit of threads.
NO_THREADS = """
import threading
from pathlib import Path

_start = threading.Thread.start


def start(thread):
    full = Path("no-threads")
    if full.exists() and thread.name.startswith(full.read_text()):
        raise RuntimeError("can't start new thread")
    return _start(thread)


threading.Thread.start = start
"""

#: The same for processes, in the call that is given: `fork` itself, or the `dup` of a descriptor of
#: the new one. Each try is a line of `forks-refused`.
NO_FORKS = """
import os
from pathlib import Path

_call = os.{call}


def call(*args):
    if not Path("no-forks").exists():
        return _call(*args)
    with Path("forks-refused").open("a") as log:
        log.write("one\\n")
    raise OSError({number}, "not now")


os.{call} = call
"""
NO_FORK = NO_FORKS.format(call="fork", number=errno.EAGAIN)
NO_DUP = NO_FORKS.format(call="dup", number=errno.EMFILE)

#: On SIGUSR2 callbacks of the event loop fail, each in its own way; on SIGUSR1 each turn does.
FAILING_CALLBACKS = """
import signal

from celery import bootsteps


def fail_once(error):
    raise error


class Faults(bootsteps.StartStopStep):
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer):
        def fail(*_):
            consumer.hub.call_soon(fail_once, BlockingIOError(11, "temporarily unavailable"))
            consumer.hub.call_soon(fail_once, ConnectionResetError(104, "reset"))
            consumer.hub.call_later(0, fail_once, ConnectionResetError(104, "reset"))
            consumer.hub.call_later(0, fail_once, MemoryError())

        def fail_for_good(*_):
            consumer.hub.on_tick.add(lambda: fail_once(OSError("always")))

        signal.signal(signal.SIGUSR2, fail)
        signal.signal(signal.SIGUSR1, fail_for_good)


def add_faults(app):
    app.steps["consumer"].add(Faults)
"""


def spoil(project: ProbeProject, *before: str, after: str = "") -> None:
    """Let the project's module begin and end with more code."""
    module = project.directory / "probe.py"
    module.write_text("\n".join([*before, module.read_text(), after]))


def children(worker: "Popen[bytes]") -> set[int]:
    """The processes of its pool."""
    text = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
    return {int(child) for child in text.split()}


def descriptors(worker: "Popen[bytes]") -> int:
    return len(os.listdir(f"/proc/{worker.pid}/fd"))


def wait_for_start(project: ProbeProject, id_: str, times: int = 1) -> int:
    """Wait until a task started so often; the process of the last start."""
    wait_until(
        lambda: len(project.events(id_, "start")) == times, PATIENCE, f"start {times} of {id_}"
    )
    return int(project.events(id_, "start")[-1]["pid"])


def wait_for_log(project: ProbeProject, text: str, times: int = 1) -> None:
    wait_until(lambda: project.worker_log().count(text) >= times, PATIENCE, text)


def assert_never_connected_anew(project: ProbeProject) -> None:
    assert "onnection to broker lost" not in project.worker_log()
    assert "Message released" not in project.worker_log()


# Before a task starts


def test_what_no_thread_can_be_started_for_is_handed_back_and_runs_once_there_is_room(
    make_project: MakeProject,
) -> None:
    project = make_project()
    spoil(project, NO_THREADS)
    full = project.directory / "no-threads"
    full.write_text("ThreadPoolExecutor")
    ids = [project.send("work"), *(project.send("together", "ok") for _ in range(5))]
    worker = project.start("--pool", "threads")

    wait_for_log(project, "lacks resources for a message (RuntimeError)", times=len(ids))
    assert project.events() == []
    full.unlink()
    for id_ in ids:
        ran = lambda id_=id_: project.events(id_, "end") or project.events(id_, "together")  # noqa: E731
        wait_until(ran, PATIENCE, f"the end of {id_}")
    project.wait_for_empty_queue()

    assert len(project.events(ids[0], "start")) == 1
    assert all(
        len(project.events(id_, "together")) + len(project.events(id_, "start")) == 1
        for id_ in ids[1:]
    )
    assert project.queues.dead_letters() == []
    assert project.stop(worker) == 0


def test_what_a_thread_that_becomes_free_finds_later_runs_once(make_project: MakeProject) -> None:
    # An executor queues even what it has just refused.
    project = make_project()
    spoil(project, NO_THREADS)
    worker = project.start("--pool", "threads", "-c", "4")
    busy = [project.send("work", 2) for _ in range(2)]
    for id_ in busy:
        wait_for_start(project, id_)

    full = project.directory / "no-threads"
    full.write_text("ThreadPoolExecutor")
    ids = [project.send("work", 0.2) for _ in range(20)]
    wait_for_log(project, "lacks resources for a message (RuntimeError)", times=10)
    project.wait_for_empty_queue()

    assert full.exists()
    for id_ in [*busy, *ids]:
        assert len(project.events(id_, "start")) == len(project.events(id_, "end")) == 1
    assert project.queues.dead_letters() == []
    assert project.stop(worker) == 0


# While it runs


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_runs_out_of_memory_is_retried_and_then_dead_lettered(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project()
    alone = project.send("run_out_of_memory")
    shared = [project.send("together", "memory") for _ in range(4)]
    well = project.send("together", "ok")
    worker = project.start("--pool", pool)

    project.wait_for_empty_queue()

    assert len(project.events(alone, "start")) == 3
    # The first time with others, where they came together; then alone.
    runs = [len(project.events(id_, "start") + project.events(id_, "together")) for id_ in shared]
    assert runs == [3] * 4
    notes = project.notes()
    assert notes.keys() == {alone, *shared}
    for note in notes.values():
        assert note["error"] == "MemoryError"
        assert note["reason"] == (
            "the task failed in the last attempt with MemoryError (deliveries: 3)"
        )
    assert len(project.events(well)) >= 1
    assert worker.poll() is None
    began = monotonic()
    assert project.stop(worker) == 0
    assert monotonic() - began < 10


# The pool's processes


@pytest.mark.slow
@pytest.mark.parametrize("fault", [NO_FORK, NO_DUP], ids=["fork", "dup"])
def test_a_process_that_cannot_start_is_tried_again_and_what_runs_runs_once(
    make_project: MakeProject, fault: str
) -> None:
    project = make_project()
    spoil(project, fault)
    worker = project.start()
    running = project.send("work", 15)
    busy = wait_for_start(project, running)
    (idle,) = children(worker) - {busy}

    full, refused = project.directory / "no-forks", project.directory / "forks-refused"
    full.touch()
    os.kill(idle, signal.SIGKILL)
    wait_until(lambda: refused.exists() and refused.stat().st_size >= 8, PATIENCE, "two tries")
    used = descriptors(worker)
    wait_until(lambda: refused.stat().st_size >= 16, PATIENCE, "two tries more")
    assert descriptors(worker) == used
    full.unlink()
    wait_until(lambda: len(children(worker)) == 2, 30, "a whole pool")

    # Both processes work, at the same time.
    second = project.send("work")
    wait_until(lambda: project.events(second, "end"), PATIENCE, "the end of the second")
    assert project.events(running, "end") == []
    project.wait_for_end(running)
    assert len(project.events(running, "start")) == 1
    both = [project.send("work", 3) for _ in range(2)]
    pids = {wait_for_start(project, id_) for id_ in both}
    assert pids == children(worker)
    for id_ in both:
        project.wait_for_end(id_)
    assert_never_connected_anew(project)
    assert project.stop(worker) == 0


@pytest.mark.slow
def test_a_process_that_is_lost_with_its_task_while_no_fork_works_is_replaced(
    make_project: MakeProject,
) -> None:
    project = make_project()
    spoil(project, NO_FORK)
    worker = project.start("-c", "1")
    id_ = project.send("work", 3)
    busy = wait_for_start(project, id_)

    (project.directory / "no-forks").touch()
    os.kill(busy, signal.SIGKILL)
    wait_for_log(project, "Could not start a pool process (BlockingIOError)")
    (project.directory / "no-forks").unlink()

    project.wait_for_end(id_)
    assert len(project.events(id_, "start")) == 2
    assert project.queues.dead_letters() == []
    assert project.stop(worker) == 0


# The event loop


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_callbacks_that_fail_on_the_event_loop_cost_no_task_and_no_worker(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project()
    spoil(project, FAILING_CALLBACKS, after="add_faults(app)")
    worker = project.start("--pool", pool)
    running = [project.send("work", 5) for _ in range(2)]
    for id_ in running:
        wait_for_start(project, id_)

    for times in (1, 2):
        worker.send_signal(signal.SIGUSR2)
        wait_for_log(project, "the loop continues.", times=4 * times)

    for id_ in running:
        project.wait_for_end(id_)
    assert [len(project.events(id_, "start")) for id_ in running] == [1, 1]
    assert_never_connected_anew(project)
    project.wait_for_end(project.send("work"))
    assert project.stop(worker) == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_whose_event_loop_only_fails_ends_with_an_error(
    make_project: MakeProject, pool: str
) -> None:
    project = make_project()
    spoil(project, FAILING_CALLBACKS, after="add_faults(app)")
    worker = project.start("--pool", pool)

    worker.send_signal(signal.SIGUSR1)

    assert worker.wait(PATIENCE) == 1
    assert "The event loop failed more than 10 times in 10 s." in project.worker_log()


# Threads that a worker cannot live without


@pytest.mark.slow
@pytest.mark.parametrize(
    "thread",
    [
        "sqs-shutdown",
        pytest.param("sqs-settler", marks=pytest.mark.slow),
        pytest.param("sqs-heartbeat", marks=pytest.mark.slow),
        pytest.param("sqs-receiver", marks=pytest.mark.slow),
        pytest.param("sqs-health", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_could_only_live_half_ends_and_says_why(
    make_project: MakeProject, thread: str, tmp_path: Path
) -> None:
    project = make_project(transport={"health_file": str(tmp_path / "health")})
    spoil(project, NO_THREADS)
    (project.directory / "no-threads").write_text(thread)
    id_ = project.send("work")

    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "probe", "worker", "-l", "INFO", "-c", "1"],
        cwd=project.directory,
        env={"PATH": os.environ["PATH"], "HOME": str(project.directory)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 1
    assert f"This machine cannot start the thread {thread}" in ended.stderr
    assert "Raise its limit" in ended.stderr
    assert project.events() == []
    (project.directory / "no-threads").unlink()
    project.start()
    project.wait_for_end(id_)


@pytest.mark.slow
def test_a_worker_waits_for_the_threads_that_it_needs(make_project: MakeProject) -> None:
    project = make_project()
    spoil(project, NO_THREADS)
    full = project.directory / "no-threads"
    full.write_text("sqs-settler")
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(project.start)
        wait_for_log(project, "Could not start the thread sqs-settler")
        full.unlink()
        worker = starting.result()
    project.wait_for_end(project.send("work"))
    assert project.stop(worker) == 0
