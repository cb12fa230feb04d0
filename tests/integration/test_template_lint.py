"""cfn-lint and AWS's own validator find nothing in the templates of infra/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloudformation.template import INFRA
from tests.tools import run

#: Regions with different services.
REGIONS = ("us-east-1", "eu-west-1", "ap-northeast-2")

TEMPLATES = sorted(INFRA.glob("*.yaml"))


def test_cfn_lint_finds_nothing() -> None:
    command = [
        Path(sys.executable).with_name("cfn-lint"),
        "--include-checks",
        "I",
        "--format",
        "parseable",
    ]
    done = subprocess.run(
        [*command, "--regions", *REGIONS, "--template", *map(str, TEMPLATES)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# AWS's validator ----------------------------------------------------------------------------------

#: Prints what cloudformation-validate finds that is more than information.
VALIDATE = """
import json, sys
from cloudformation_validate import CompositeEngine
engine = CompositeEngine()
for path in sys.argv[1:]:
    for found in engine.validate_template(path).diagnostics:
        if found.severity.name not in ("INFO", "DEBUG"):
            name = found.entity.logical_id if found.entity else ""
            where = f"{path.rpartition('/')[2]} {name} {found.property_path or ''}".strip()
            print(json.dumps([found.rule_id, where, found.message]))
"""

#: What it finds although it is as it should be: the rule, and where.
RIGHT = {
    # The ARN or the key of a secret is no secret.
    ("W2509", "Arn"),
    ("W2509", "SecretKey"),
    # It takes the empty default of the parameters, with which the condition does not hold.
    ("F3031", "Properties.VpcConfig"),
    ("E1150", "Properties.VpcConfig"),
}


def found_in(templates: list[Path], directory: Path) -> list[tuple[str, str, str]]:
    printed = run("python", "-c", VALIDATE, *templates, cwd=directory)
    return [tuple(json.loads(line)) for line in printed.splitlines()]


@pytest.mark.slow
def test_cloudformation_validate_finds_nothing(tmp_path: Path) -> None:
    found = found_in(TEMPLATES, tmp_path)
    wrong = [
        each
        for each in found
        if not any(each[0] == rule and part in each[1] for rule, part in RIGHT)
    ]
    assert wrong == []


@pytest.mark.slow
def test_cloudformation_validate_would_find_a_fault(tmp_path: Path) -> None:
    template = tmp_path / "bad.yaml"
    template.write_text(
        "Resources: {Q: {Type: AWS::SQS::Queue, Properties: {MessageRetentionPeriod: 1}}}"
    )
    assert [rule for rule, *_ in found_in([template], tmp_path)] == ["F3034"]
