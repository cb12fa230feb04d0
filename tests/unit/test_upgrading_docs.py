"""docs/upgrading.md names the versions that are pinned."""

import re
import tomllib
from pathlib import Path

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/upgrading.md").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def row(package: str) -> list[str]:
    found = re.search(rf"^\| {package} \| (\S+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert found is not None, package
    return list(found.groups())


@pytest.mark.parametrize("package", ["celery", "kombu", "flower"])
def test_the_versions_are_those_that_are_allowed_and_pinned(package: str) -> None:
    (allowed,) = (
        found[1]
        for each in PROJECT["dependencies"]
        if (found := re.fullmatch(rf"{package}(?:\[\w+\])?(~=\S+)", each))
    )
    (pinned,) = re.findall(rf"^{package}==(\S+)$", CONSTRAINTS, re.MULTILINE)
    assert row(package) == [allowed, pinned]


def test_the_versions_of_python_are_those_of_the_project_and_of_the_image() -> None:
    (image,) = set(re.findall(r"FROM python:([\d.]+)", (ROOT / "Dockerfile").read_text()))
    assert row("Python") == [PROJECT["requires-python"], f"3.11; the image has {image}"]


def test_a_variable_that_an_older_release_does_not_know_is_ignored() -> None:
    assert "Variables of the environment are ignored." in PAGE
    assert Settings.model_config["extra"] == "ignore"
