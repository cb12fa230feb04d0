"""The preflight says what is missing, with the fix, before anything is installed."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import preflight

DEBIAN = {"ID": "ubuntu", "ID_LIKE": "debian"}
FEDORA = {"ID": "fedora"}


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux that could run the packaged mongod, and has none of its own."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: DEBIAN)
    monkeypatch.setattr(preflight, "_has_avx", lambda: True)
    monkeypatch.setenv("PATH", "")
    return monkeypatch


def test_it_runs_on_the_standard_library_alone() -> None:
    completed = subprocess.run(
        [sys.executable, "-I", "-S", preflight.__file__], capture_output=True, text=True, timeout=10
    )
    assert (completed.returncode, completed.stderr) == (0, "")


def test_an_old_python_is_told_which_one_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    (line,) = preflight.python_lacks()
    assert "3.11 or newer" in line
    assert "make PYTHON=" in line


def test_nothing_is_missing_where_every_library_loads(linux: pytest.MonkeyPatch) -> None:
    assert list(preflight.mongod_lacks(lambda library: True)) == []


@pytest.mark.parametrize(
    ("release", "fix"),
    [
        (DEBIAN, "`sudo apt-get install libcurl4 libssl3`."),
        (FEDORA, "`sudo dnf install libcurl openssl-libs`."),
        ({"ID": "else"}, "package that Debian calls libcurl4 libssl3."),
    ],
)
def test_missing_libraries_are_named_with_the_command_that_installs_them(
    linux: pytest.MonkeyPatch, release: dict[str, str], fix: str
) -> None:
    linux.setattr(platform, "freedesktop_os_release", lambda: release)
    (line,) = preflight.mongod_lacks(lambda library: library == "liblzma.so.5")
    assert "libcurl.so.4, libssl.so.3, libcrypto.so.3" in line
    assert fix in line
    assert "\n" not in line


def test_a_mongod_on_the_path_makes_up_for_missing_libraries(
    linux: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mongod = tmp_path / "mongod"
    mongod.write_text("#!/bin/sh\nexit 0\n")
    mongod.chmod(0o755)
    linux.setenv("PATH", str(tmp_path))
    assert list(preflight.mongod_lacks(lambda library: False)) == []


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "aarch64"), ("Darwin", "arm64"), ("Darwin", "x86_64")]
)
def test_where_no_mongod_is_packaged_it_says_how_to_get_one(
    linux: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    linux.setattr(platform, "system", lambda: system)
    linux.setattr(platform, "machine", lambda: machine)
    (line,) = preflight.mongod_lacks()
    assert "https://www.mongodb.com" in line
    assert list(preflight.sqs_server_lacks()) == []


@pytest.mark.parametrize("libc", [("", ""), ("glibc", "2.31")])
def test_an_older_or_another_libc_is_named(
    linux: pytest.MonkeyPatch, libc: tuple[str, str]
) -> None:
    linux.setattr(platform, "libc_ver", lambda: libc)
    (line,) = preflight.mongod_lacks()
    assert "glibc 2.34" in line


def test_a_processor_without_avx_is_named(linux: pytest.MonkeyPatch) -> None:
    linux.setattr(preflight, "_has_avx", lambda: False)
    (line,) = preflight.mongod_lacks(lambda library: True)
    assert "AVX" in line


def test_a_system_without_an_sqs_server_is_told(linux: pytest.MonkeyPatch) -> None:
    linux.setattr(platform, "system", lambda: "Windows")
    (line,) = preflight.sqs_server_lacks()
    assert "docker compose" in line


def test_every_library_of_mongod_that_this_machine_has_is_found() -> None:
    # Where the tests run, mongod runs: what the preflight asks for is there.
    assert not list(preflight.mongod_lacks())
