"""cfn-lint finds nothing in the templates."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

INFRA = Path(__file__).parents[2] / "infra"

CFN_LINT = Path(sysconfig.get_path("scripts")) / "cfn-lint"


@pytest.mark.parametrize("template", sorted(path.name for path in INFRA.glob("*.yaml")))
def test_cfn_lint_finds_nothing(template: str) -> None:
    done = subprocess.run(
        [sys.executable, CFN_LINT, INFRA / template], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "")
