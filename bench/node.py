"""What runs under Node, with its packages, pinned and installed in bench/node alone."""

import json
import shutil
import subprocess
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent / "node"
OLDEST = 20
INSTALL_SECONDS = 120


def versions() -> dict[str, str]:
    """Of Node and the pinned packages that are measured."""
    pinned = _pinned()
    told = {"Node": _told().strip().removeprefix("v")}
    return told | {name: pinned[name] for name in ("sqs-consumer", "mongodb")}


def server_version() -> str:
    """Of the SQS server."""
    return _pinned()["fauxqs"]


def missing() -> str | None:
    """Why nothing runs under Node here; None once the packages are installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return f"no {'npm' if node else 'Node'} on this machine"
    told = _told()
    if major(told) < OLDEST:
        return f"Node {told.strip()} is older than {OLDEST}"
    return None if _is_installed() else _install(npm)


def major(told: str) -> int:
    """The first number of what `node --version` says; 0 where there is none."""
    first = told.strip().removeprefix("v").split(".")[0]
    return int(first) if first.isdecimal() else 0


def command(script: str, *arguments: str) -> list[str]:
    """Runs a script of the directory."""
    return [shutil.which("node") or "node", str(DIRECTORY / script), *arguments]


def _told() -> str:
    asked = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=30)
    return asked.stdout


def _pinned() -> dict[str, str]:
    return dict(json.loads((DIRECTORY / "package.json").read_text())["dependencies"])


def _is_installed() -> bool:
    # npm writes this file last.
    done = DIRECTORY / "node_modules" / ".package-lock.json"
    wanted = DIRECTORY / "package-lock.json"
    return done.exists() and done.stat().st_mtime >= wanted.stat().st_mtime


def _install(npm: str) -> str | None:
    try:
        done = subprocess.run(
            [npm, "ci", "--loglevel=error"],
            cwd=DIRECTORY,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"npm did not install the packages within {INSTALL_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return f"npm could not install the packages: {lines[-1] if lines else done.returncode}"
