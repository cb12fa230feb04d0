"""The Procfile's lines, as a process manager reads them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def processes() -> dict[str, list[str]]:
    lines = (ROOT / "Procfile").read_text().splitlines()
    entries = [re.fullmatch(r"(\w+): (.+)", line) for line in lines]
    assert all(entries), "a line that is not `name: command`"
    return {entry[1]: shlex.split(entry[2]) for entry in entries if entry}


def test_the_worker_needs_no_argument() -> None:
    assert processes()["worker"] == ["celery", "-A", "app", "worker"]


@pytest.mark.parametrize("name", processes())
def test_without_its_environment_a_process_says_in_one_line_what_to_do(
    name: str, tmp_path: Path
) -> None:
    program, *arguments = processes()[name]
    outcome = subprocess.run(
        # In an empty directory, for a developer's .env would be read.
        [Path(sys.executable).with_name(program), *arguments],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert outcome.returncode != 0
    said = (outcome.stdout + outcome.stderr).strip().splitlines()
    assert len(said) == 1, said
    assert "AWS_REGION" in said[0]
    assert "make run" in said[0]
