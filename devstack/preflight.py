"""Says what this machine lacks, each with its fix, before anything is installed.

Uses nothing but the standard library, for it runs on the system's Python:

    python preflight.py            what a virtual environment needs
    python preflight.py services   and what the SQS server and mongod need
"""

import ctypes
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

MINIMUM_PYTHON = (3, 11)
#: Where there is a wheel of roto-aws, by (system, machine).
SQS_SERVER_PLATFORMS = {
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
    ("Darwin", "x86_64"),
    ("Darwin", "arm64"),
}
#: The libraries that the packaged mongod needs and a small machine may lack, with the packages
#: that hold them: Debian's and Ubuntu's, then Fedora's and Red Hat's.
MONGOD_LIBRARIES = {
    "libcurl.so.4": ("libcurl4", "libcurl"),
    "libssl.so.3": ("libssl3", "openssl-libs"),
    "libcrypto.so.3": ("libssl3", "openssl-libs"),
    "liblzma.so.5": ("liblzma5", "xz-libs"),
}
MONGOD_GLIBC = (2, 34)
INSTALL_MONGOD = (
    "install MongoDB Community Server 6.0 or newer, so that `mongod` is on the PATH "
    "(https://www.mongodb.com/docs/manual/installation/)"
)


def main() -> int:
    lacking = list(python_lacks())
    if "services" in sys.argv[1:]:
        lacking += sqs_server_lacks()
        lacking += mongod_lacks()
    for line in lacking:
        print(f"preflight: {line}", file=sys.stderr)
    return 1 if lacking else 0


def python_lacks() -> Iterator[str]:
    """One line for each thing that keeps a virtual environment from being made."""
    if sys.version_info < MINIMUM_PYTHON:
        yield (
            f"Python {platform.python_version()} is too old: 3.11 or newer is needed. "
            "Name one: `make PYTHON=/path/to/python3 ...`."
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        yield f"this Python cannot make virtual environments. {_install('python3-venv', 'python3')}"


def sqs_server_lacks() -> Iterator[str]:
    """One line if there is no SQS server for this machine."""
    here = (platform.system(), platform.machine())
    if here not in SQS_SERVER_PLATFORMS:
        yield (
            f"there is no roto-server for {' '.join(here)}: use Linux or macOS on x86-64 or ARM, "
            "or `docker compose up`."
        )
    elif here[0] == "Linux" and not _glibc():
        yield "roto-server needs glibc, which this Linux has not: use `docker compose up`."


def mongod_lacks(loads: Callable[[str], bool] | None = None) -> Iterator[str]:
    """One line for each thing that keeps the packaged mongod from running.

    None where a mongod on the PATH runs instead. `loads` says whether a library can be loaded.
    """
    if _mongod_on_path():
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        yield f"no mongod is packaged for this machine: {INSTALL_MONGOD}."
        return
    if _glibc() < MONGOD_GLIBC:
        yield (
            f"the packaged mongod needs glibc {'.'.join(map(str, MONGOD_GLIBC))}: "
            f"use a newer Linux, or {INSTALL_MONGOD}."
        )
        return
    if not _has_avx():
        yield (
            "mongod needs a processor with AVX, which this one has not: use another machine, "
            "or a virtual one that passes the processor's features on."
        )
    missing = [name for name in MONGOD_LIBRARIES if not (loads or _loads)(name)]
    if missing:
        debian, fedora = zip(*(MONGOD_LIBRARIES[name] for name in missing), strict=True)
        yield (
            f"mongod needs {', '.join(missing)}. "
            f"{_install(_words(debian), _words(fedora))} Or {INSTALL_MONGOD}."
        )


def _mongod_on_path() -> bool:
    found = shutil.which("mongod")
    if found is None:
        return False
    try:
        return subprocess.run([found, "--version"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _glibc() -> tuple[int, ...]:
    """Its version; empty where there is none."""
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


def _has_avx() -> bool:
    try:
        return " avx " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _install(debian: str, fedora: str) -> str:
    """The command for this distribution; for one unknown, what to look for."""
    kinds = _distribution()
    if kinds & {"debian", "ubuntu"}:
        return f"Fix: `sudo apt-get install {debian}`."
    if kinds & {"fedora", "rhel", "centos"}:
        return f"Fix: `sudo dnf install {fedora}`."
    return f"Install what Debian calls {debian}."


def _distribution() -> set[str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return set()
    return {release["ID"], *release.get("ID_LIKE", "").split()}


def _words(packages: tuple[str, ...]) -> str:
    return " ".join(dict.fromkeys(packages))


if __name__ == "__main__":
    sys.exit(main())
