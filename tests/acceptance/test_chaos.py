"""A short run of `make chaos`: a fleet under fire loses and doubles nothing, and stays alive."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Any will do; a run that failed is repeated by the command that it prints.
SEED = 7

#: Seconds. A hundred and ten on a machine that has nothing else to do.
PATIENCE = 240


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(PATIENCE + 10)
def test_a_fleet_under_fire_keeps_every_promise(tmp_path: Path) -> None:
    command = ["--short", "--seed", str(SEED), "--directory", str(tmp_path)]

    ran = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
