"""The load test itself, on servers of its own: with k6 if this machine has it, and otherwise with
`bench/load/clients.py`. The output says which."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *arguments, "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    sys.stdout.write(done.stdout + done.stderr)
    return done


def test_each_registration_that_was_accepted_ends(tmp_path: Path) -> None:
    parts = ("--ramp", "2", "--steady", "2", "--spike", "2", "--rest", "1")

    done = run(tmp_path, "--quick", *parts)

    assert done.returncode == 0
    figures = (tmp_path / "report.txt").read_text()
    assert "accepted registrations has a final state" in figures
    assert "errors: none" in figures


def test_a_task_that_takes_longer_than_the_visibility_timeout_runs_once_for_each_message(
    tmp_path: Path,
) -> None:
    done = run(tmp_path, "--consumer-delay", "4", "--visibility", "3")

    assert done.returncode == 0
    stock, ours = (tmp_path / "experiment.md").read_text().splitlines()[2:]
    assert "| 8 ran 1x | 8 | 0 | 0 |" in ours
    # The same messages, to show that the time is one in which others run them again.
    assert "8 ran 1x" not in stock
