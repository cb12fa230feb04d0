"""The parts of the stack that need no server: ports, waiting, its directory."""

import os
import socket
from pathlib import Path

import pytest

from devstack import ports
from devstack.directory import Directory
from devstack.errors import StackError
from devstack.waiting import wait_until


def test_a_free_port_is_taken_as_preferred() -> None:
    preferred = ports.preferred_or_any(None)
    assert ports.preferred_or_any(preferred) == preferred


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_busy_port_gets_another(host: str) -> None:
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind((host, 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert ports.is_listening(port)
        assert ports.preferred_or_any(port) != port
    assert not ports.is_listening(port)


def test_waiting_gives_the_value_waited_for() -> None:
    values = iter([None, "", "there"])
    assert wait_until(lambda: next(values), 30, "a value") == "there"


def test_waiting_ends_at_its_deadline_and_says_for_what() -> None:
    with pytest.raises(TimeoutError, match=r"rain: not within 0\.05 s"):
        wait_until(lambda: False, 0.05, "rain")


def test_a_directory_holds_one_stack_at_a_time(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    with (
        directory.occupied(),
        pytest.raises(StackError, match="Another stack already runs"),
        directory.occupied(),
    ):
        pass
    with directory.occupied():
        pass


def test_a_directory_is_free_once_the_last_process_of_its_stack_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devstack.directory.REMAINS_SECONDS", 0.05)
    directory = Directory(tmp_path)
    still_there = "the last stack's processes"
    with pytest.raises(StackError, match=still_there), directory.occupied() as lock:
        inherited = os.dup(lock)
    with pytest.raises(StackError, match=still_there), directory.occupied():
        pass
    os.close(inherited)
    with directory.occupied():
        pass


def test_the_environment_file_is_for_this_user_only_and_gone_with_the_stack(
    tmp_path: Path,
) -> None:
    directory = Directory(tmp_path)
    with directory.occupied():
        directory.publish({"MONGO_URI": "mongodb://h/db?a=b&c=d", "NAME": "it's"})
        assert directory.environment_file.stat().st_mode & 0o777 == 0o600
        assert directory.environment_file.read_text() == (
            "MONGO_URI='mongodb://h/db?a=b&c=d'\nNAME='it'\"'\"'s'\n"
        )
    assert not directory.environment_file.exists()


def test_a_directory_in_which_nothing_can_be_stored_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StackError, match=r"Cannot write .*file/below \(Not a directory\)"),
        Directory(tmp_path / "file" / "below").occupied(),
    ):
        pass

    stack = Directory(tmp_path)
    stack.environment_file.mkdir()
    with pytest.raises(StackError, match=r"Cannot write .*stack\.env"):
        stack.publish({})


def test_the_log_of_the_start_before_is_kept(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    directory.log("worker").write_text("before")
    assert not directory.log("worker").exists()
    assert (tmp_path / "worker.log.1").read_text() == "before"
