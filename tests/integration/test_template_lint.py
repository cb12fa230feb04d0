"""cfn-lint finds nothing in the templates of infra/."""

import subprocess
import sys
from pathlib import Path

from tests.cloudformation.template import INFRA

#: Regions with different services.
REGIONS = ("us-east-1", "eu-west-1", "ap-northeast-2")


def test_cfn_lint_finds_nothing() -> None:
    templates = sorted(map(str, INFRA.glob("*.yaml")))
    command = [
        Path(sys.executable).with_name("cfn-lint"),
        "--include-checks",
        "I",
        "--format",
        "parseable",
    ]
    done = subprocess.run(
        [*command, "--regions", *REGIONS, "--template", *templates],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
