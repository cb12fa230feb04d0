"""The memory of Flower's page "Dead letters" does not grow with the number of dead letters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]

LETTERS = 50_000

#: What the page may need more for 50,000 dead letters of 4 KiB, 200 MiB in all, than for 3,000.
MIB = 20


def test_fifty_thousand_dead_letters_are_read_and_redriven_in_bounded_memory() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.many_letters", str(LETTERS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    did = json.loads(ran.stdout)
    assert (did["seen"], did["redriven"]) == (LETTERS, LETTERS)
    assert did["kib"] < MIB * 1024, f"{did['kib'] / 1024:.1f} MiB"
