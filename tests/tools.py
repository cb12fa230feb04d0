"""Other people's programs in .tools, which `make verify` sets up."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"


def run(
    *command: str | Path, cwd: Path, seconds: float = 60, more: Mapping[str, str] | None = None
) -> str:
    """What a program of .tools prints. Fails if it fails."""
    if not (TOOLS / "installed").exists():
        pytest.fail(f"{TOOLS} is missing: `make verify` sets it up.", pytrace=False)
    path = [TOOLS / "bin", TOOLS / "node_modules" / ".bin", os.environ["PATH"]]
    environment = {"HOME": str(cwd), "PATH": os.pathsep.join(map(str, path))}
    ran = subprocess.run(
        [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]],
        cwd=cwd,
        env=environment | dict(more or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert ran.returncode == 0, ran.stdout[-20_000:]
    return ran.stdout
