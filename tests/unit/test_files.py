"""Each file that the software writes: a link that somebody planted there is not followed."""

import ast
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery

from app.loader import check_flower
from app.startup import check_state_file
from bench import results, steadiness
from devstack.directory import Directory
from devstack.errors import StackError
from devstack.process import Process
from sqs_broker.errors import ConfigurationError
from sqs_broker.machine import files
from sqs_broker.worker import health
from sqs_broker.worker.beat import Scheduler

Write = Callable[[Path], object]


def write_health(path: Path) -> None:
    health.write(path, health.Report(True, "polling"), health.Vitals())


def write_environment(path: Path) -> None:
    Directory(path.parent).publish({"NAME": "value"})


def write_log(path: Path) -> None:
    with Process("it", [sys.executable, "-c", "print('hello')"], log=path, grace=1) as process:
        assert process.wait(10) == 0


def write_next_log(path: Path) -> None:
    write_log(Directory(path.parent).log(path.stem))


def write_results(path: Path) -> None:
    found = results.Results(
        at="today", machine="it", versions={}, server="it", rounds=1, window=1, command="it"
    )
    results.save(found, path)


def write_soak(path: Path) -> None:
    steadiness.save(
        steadiness.Soak(at="today", machine="it", minutes=1, rate=1, samples=[], server="it"), path
    )


#: What writes each file, its name, and its mode.
WRITERS: dict[str, tuple[Write, str, int]] = {
    "WORKER_HEALTH_FILE": (write_health, "health.json", 0o644),
    "stack.env": (write_environment, "stack.env", 0o600),
    "a log": (write_log, "worker.log", 0o600),
    "the log of the next start": (write_next_log, "worker.log", 0o600),
    "results": (write_results, "bench.json", 0o644),
    "a soak": (write_soak, "soak.json", 0o644),
    "what is replaced": (lambda path: files.replace(path, "new", 0o640), "file", 0o640),
    "what is created": (lambda path: files.create(path, 0o640).close(), "file", 0o640),
}

writers = pytest.mark.parametrize(("write", "name", "mode"), WRITERS.values(), ids=WRITERS)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that nobody means to write to."""
    target = tmp_path / "elsewhere" / "target"
    target.parent.mkdir()
    target.write_text("untouched")
    target.chmod(0o604)
    return target


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory in which everybody may write, as /tmp."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    return shared


@writers
def test_a_link_that_was_planted_is_replaced_and_its_target_untouched(
    target: Path, shared: Path, write: Write, name: str, mode: int
) -> None:
    (shared / name).symlink_to(target)

    write(shared / name)

    assert (target.read_text(), stat.S_IMODE(target.stat().st_mode)) == ("untouched", 0o604)
    assert not (shared / name).is_symlink()
    assert stat.S_IMODE((shared / name).stat().st_mode) == mode


@writers
def test_a_link_to_nothing_makes_no_file_where_it_leads(
    tmp_path: Path, shared: Path, write: Write, name: str, mode: int
) -> None:
    (shared / name).symlink_to(tmp_path / "nothing")

    write(shared / name)

    assert not (tmp_path / "nothing").exists()
    assert (shared / name).is_file()


@writers
def test_links_under_every_name_that_can_be_guessed_are_not_followed(
    target: Path, shared: Path, write: Write, name: str, mode: int
) -> None:
    stem = Path(name).stem
    guessed = [
        f"{name}.{os.getpid()}",
        f"{stem}.half",
        f"{name}.tmp",
        f".{name}.tmp",
        f"{stem}.log.1",
    ]
    for each in guessed:
        (shared / each).symlink_to(target)

    write(shared / name)

    assert target.read_text() == "untouched"


@writers
def test_a_file_that_was_there_keeps_neither_its_mode_nor_who_reads_along(
    shared: Path, write: Write, name: str, mode: int
) -> None:
    (shared / name).write_text("planted")
    (shared / name).chmod(0o666)

    with (shared / name).open() as planted:
        write(shared / name)
        assert planted.read() == "planted"

    assert stat.S_IMODE((shared / name).stat().st_mode) == mode


@writers
def test_nothing_else_is_left_beside_it(shared: Path, write: Write, name: str, mode: int) -> None:
    write(shared / name)
    write(shared / name)

    assert {path.name for path in shared.iterdir()} <= {name, f"{name}.1"}


@pytest.mark.parametrize(
    "write", [lambda p: files.replace(p, "x", 0o600), lambda p: files.create(p, 0o600)]
)
def test_what_is_no_file_is_left_alone(shared: Path, write: Write) -> None:
    (shared / "directory").mkdir()
    os.mkfifo(shared / "pipe")
    (shared / "link").symlink_to(shared / "pipe")

    for name in ("directory", "pipe", "link"):
        with pytest.raises(FileExistsError, match="is not a regular file"):
            write(shared / name)

    assert {path.name for path in shared.iterdir()} == {"directory", "pipe", "link"}


def test_a_write_that_fails_leaves_what_was_there(shared: Path) -> None:
    (shared / "file").write_text("before")

    with pytest.raises(UnicodeEncodeError):
        files.replace(shared / "file", "\ud800", 0o600)

    assert [(path.name, path.read_text()) for path in shared.iterdir()] == [("file", "before")]


ROOT = Path(__file__).parents[2]

#: Ways to write to a file by its name, whatever is there.
BY_NAME = {"write_text", "write_bytes", "touch", "mkfifo", "NamedTemporaryFile", "mktemp"}


def sources() -> Iterator[Path]:
    """All that runs outside of tests, and the chaos run."""
    yield from ROOT.glob("*.py")
    for package in ("app", "sqs_broker", "devstack", "bench", "tests/chaos"):
        yield from (ROOT / package).rglob("*.py")


def writes(tree: ast.AST) -> Iterator[int]:
    """The lines that write to a file by its name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        given = ast.unparse(node)
        opens = name == "open" and re.search(
            r"""['"][rbt+]*[wax][rwbt+]*['"]|O_CREAT|O_TRUNC""", given
        )
        draws = name == "savefig" and "format=" not in given
        if name in BY_NAME or opens or draws:
            yield node.lineno


def test_every_file_is_written_by_the_one_module_that_follows_no_link() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line in writes(ast.parse(path.read_text()))
    ]
    assert [place for place in found if not place.startswith("sqs_broker/machine/files.py:")] == []
    assert len(found) == 3, found


# Locks


@pytest.mark.parametrize("name", ["stack.lock", "processes.lock"])
def test_a_lock_that_was_planted_as_a_link_is_refused_in_one_line(
    target: Path, shared: Path, name: str
) -> None:
    (shared / name).symlink_to(target)

    with (
        pytest.raises(StackError, match=f"Cannot lock .*{name}") as raised,
        Directory(shared).occupied(),
    ):
        pass

    assert "\n" not in str(raised.value)
    assert target.read_text() == "untouched"
    (shared / name).unlink()
    with Directory(shared).occupied():
        pass
    assert stat.S_IMODE((shared / name).stat().st_mode) == 0o600


def test_the_directory_of_a_stack_is_this_user_s_own(tmp_path: Path) -> None:
    with Directory(tmp_path / "deep" / "stack").occupied():
        assert stat.S_IMODE((tmp_path / "deep" / "stack").stat().st_mode) == 0o700


# Files that others open by name, and unpickle


def refuse_flower(path: Path) -> None:
    options = SimpleNamespace(
        address="127.0.0.1", unix_socket="", basic_auth=None, auth=None, auth_provider=None,
        db=str(path), persistent=True, conf="flowerconfig.py",
    )  # fmt: skip
    check_flower(options, [type("Ours", (), {"__module__": "sqs_broker.tools.flower.pages"})])


def refuse_beat(path: Path) -> None:
    app = Celery("beat", set_as_current=False)
    scheduler = Scheduler(app=app, schedule_filename=str(path), lazy=True)
    scheduler.setup_schedule()
    scheduler.close()


def refuse_worker(path: Path) -> None:
    check_state_file(str(path))


readers = pytest.mark.parametrize(
    ("read", "variable"),
    [
        (refuse_flower, "FLOWER_DB"),
        (refuse_beat, "beat_schedule_filename"),
        (refuse_worker, "--statedb"),
    ],
    ids=["Flower", "beat", "worker"],
)


@readers
def test_a_state_file_where_every_user_may_write_is_refused_in_one_line(
    target: Path, shared: Path, read: Callable[[Path], None], variable: str
) -> None:
    for name in ("state.db", "state.db.tmp", "state.db.db"):
        (shared / name).symlink_to(target)

    with pytest.raises(ConfigurationError, match="every user may write to") as raised:
        read(shared / "state.db")

    assert raised.value.message.startswith(variable)
    assert "\n" not in raised.value.message
    assert target.read_text() == "untouched"


@readers
@pytest.mark.parametrize("name", ["state.db", "state.db.tmp", "state.db.dat"])
def test_a_state_file_that_is_a_link_is_refused_in_one_line(
    target: Path, tmp_path: Path, read: Callable[[Path], None], variable: str, name: str
) -> None:
    (tmp_path / name).symlink_to(target)

    with pytest.raises(ConfigurationError, match="is a symbolic link") as raised:
        read(tmp_path / "state.db")

    assert raised.value.message.startswith(variable)
    assert target.read_text() == "untouched"


@readers
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("name", ["state.db", "state.db.tmp", "state.db.dat"])
def test_a_state_file_of_another_user_is_refused_in_one_line(
    tmp_path: Path, read: Callable[[Path], None], variable: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"a pickle")
    os.chown(tmp_path / name, 12_345, 12_345)

    with pytest.raises(ConfigurationError, match="belongs to another user") as raised:
        read(tmp_path / "state.db")

    assert raised.value.message.startswith(variable)


@readers
def test_a_state_file_in_a_directory_of_one_s_own_is_taken(
    tmp_path: Path, read: Callable[[Path], None], variable: str
) -> None:
    read(tmp_path / "state.db")


def test_nothing_is_said_of_a_directory_that_is_not_there(tmp_path: Path) -> None:
    # Whoever opens the file says that.
    assert files.fault(tmp_path / "nowhere" / "state.db") is None


def test_a_state_file_that_is_not_named_is_no_fault() -> None:
    check_state_file(None)
