"""Reports what this machine lacks, with the fixes, before anything is installed.

Uses only the standard library, because the system's Python runs it:

    python preflight.py            checks the needs of a virtual environment
    python preflight.py services   also checks the needs of the SQS server and mongod
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
#: The platforms with a wheel of roto-aws, as (system, machine).
SQS_SERVER_PLATFORMS = {
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
    ("Darwin", "x86_64"),
    ("Darwin", "arm64"),
}
#: The libraries that the packaged mongod needs and that a small system may lack, with the packages
#: that contain them: for Debian and Ubuntu, then for Fedora and Red Hat.
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
    """One line for each fault that prevents a virtual environment."""
    if sys.version_info < MINIMUM_PYTHON:
        yield (
            f"Python {platform.python_version()} is too old: 3.11 or newer is needed. "
            "Name one: `make PYTHON=/path/to/python3 ...`."
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        fix = _install("python3-venv", "python3")
        yield f"this Python cannot create virtual environments. {fix}"


def sqs_server_lacks() -> Iterator[str]:
    """One line if there is no SQS server for this machine."""
    here = (platform.system(), platform.machine())
    if here not in SQS_SERVER_PLATFORMS:
        yield (
            f"there is no roto-server for {' '.join(here)}: use Linux or macOS on x86-64 or ARM, "
            "or `docker compose up`."
        )
    elif here[0] == "Linux" and not _glibc():
        yield "roto-server needs glibc, which this Linux lacks: use `docker compose up`."


def mongod_lacks(loads: Callable[[str], bool] | None = None) -> Iterator[str]:
    """One line for each fault that prevents the packaged mongod from running.

    Empty if a mongod on the PATH runs instead. `loads` returns whether a library can be loaded.
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
            "mongod needs a processor with AVX, which this one lacks: use another machine, "
            "or a virtual machine that passes on the processor's features."
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
    """The version of glibc; empty if there is none."""
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
    """The command to install a package, or Debian's name of it if the distribution is unknown."""
    kinds = _distribution()
    if kinds & {"debian", "ubuntu"}:
        return f"Fix: `sudo apt-get install {debian}`."
    if kinds & {"fedora", "rhel", "centos"}:
        return f"Fix: `sudo dnf install {fedora}`."
    return f"Install the package that Debian calls {debian}."


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
