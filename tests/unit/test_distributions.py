"""Two distributions come from this repository: the broker for any project, and the application."""

import ast
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.wheels import ROOT, Wheels

BROKER: dict[str, Any] = tomllib.loads((ROOT / "sqs_broker/pyproject.toml").read_text())["project"]
APPLICATION: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

#: What comes with a dependency and is imported beside it.
COMES_WITH = {"billiard": "celery", "click": "celery", "botocore": "boto3", "bson": "pymongo",
              "tornado": "flower", "opentelemetry": "opentelemetry-api"}  # fmt: skip

#: The sources that need an extra of the broker.
OF_EXTRAS = {
    "mongodb": set((ROOT / "sqs_broker/control").rglob("*.py")),
    "fast": {ROOT / "sqs_broker/sqs/handle.py"},
    "metrics": {
        ROOT / "sqs_broker/observers/endpoint.py",
        ROOT / "sqs_broker/observers/exposition.py",
    },
    "flower": set((ROOT / "sqs_broker/tools/flower").rglob("*.py")),
    "opentelemetry": {
        ROOT / "sqs_broker/observers/meters.py",
        *(ROOT / "sqs_broker/observers/spans").rglob("*.py"),
    },
}


def contents(wheel: Path) -> set[str]:
    """The files of a wheel, without what describes it."""
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def sources(package: str) -> set[str]:
    files = (ROOT / package).rglob("*.py")
    return {file.relative_to(ROOT).as_posix() for file in files} | {f"{package}/py.typed"}


def imported(source: Path) -> set[str]:
    """The packages, other than Python's own, that a file imports to run."""
    found: set[str] = set()
    for node in _run(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"sqs_broker"}


def _run(node: ast.AST) -> list[ast.AST]:
    """The nodes that are not for the type checker alone."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return []
    below = [found for child in ast.iter_child_nodes(node) for found in _run(child)]
    return [node, *below]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(each).name for each in requirements}


def test_the_broker_s_wheel_is_its_package_with_its_pages_and_nothing_else(wheels: Wheels) -> None:
    pages = {f"sqs_broker/tools/flower/{name}.html" for name in ("broker", "dead_letters")}
    assert contents(wheels.broker) == sources("sqs_broker") | pages


def test_the_application_s_wheel_is_its_package_with_the_two_files_of_settings(
    wheels: Wheels,
) -> None:
    settings = {"app/celeryconfig.py", "app/flowerconfig.py"}
    assert contents(wheels.application) == sources("app") | settings


def test_only_the_broker_has_commands(wheels: Wheels) -> None:
    groups = {}
    for wheel in (wheels.broker, wheels.application):
        with zipfile.ZipFile(wheel) as opened:
            (points,) = [n for n in opened.namelist() if n.endswith("entry_points.txt")] or [None]
            groups[wheel] = opened.read(points).decode().split("\n") if points else []
    assert [line for line in groups[wheels.broker] if line] == [
        "[console_scripts]",
        "sqs-health = sqs_broker.tools.health:main",
        "[celery.commands]",
        "sqs = sqs_broker.tools.commands:sqs",
    ]
    assert groups[wheels.application] == []


def test_both_have_one_version_and_the_application_asks_for_just_that() -> None:
    assert APPLICATION["version"] == BROKER["version"]
    (asked,) = (
        r for r in map(Requirement, APPLICATION["dependencies"]) if r.name == BROKER["name"]
    )
    assert str(asked.specifier) == f"=={BROKER['version']}"
    # It has a control plane, and so has its worker. celery[sqs] brings pycurl in any case.
    assert asked.extras == {"mongodb", "fast"}


def test_both_are_built_for_the_same_python_and_celery() -> None:
    assert APPLICATION["requires-python"] == BROKER["requires-python"]
    pins = [
        {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
        for project in (APPLICATION, BROKER)
    ]
    for name in ("celery", "kombu"):
        assert pins[0][name] == pins[1][name]


def test_the_broker_names_what_it_imports_and_nothing_else() -> None:
    own = {COMES_WITH.get(p, p) for file in sources_without_extras() for p in imported(file)}
    assert own == names(BROKER["dependencies"])


def test_each_extra_of_the_broker_names_what_its_sources_import() -> None:
    extras = BROKER["optional-dependencies"]
    assert extras.keys() == OF_EXTRAS.keys()
    for extra, sources in OF_EXTRAS.items():
        own = {COMES_WITH.get(p, p) for file in sources for p in imported(file)}
        assert own - names(BROKER["dependencies"]) == names(extras[extra])


def sources_without_extras() -> set[Path]:
    of_extras = {file for sources in OF_EXTRAS.values() for file in sources}
    return set((ROOT / "sqs_broker").rglob("*.py")) - of_extras


def test_the_extra_of_the_api_names_what_the_api_imports_and_what_it_is_served_with() -> None:
    own = {package for file in (ROOT / "app/api").rglob("*.py") for package in imported(file)}
    others = {package for file in (ROOT / "app").rglob("*.py") for package in imported(file)
              if "api" not in file.parts}  # fmt: skip
    # Starlette is FastAPI's own. httptools is uvicorn's way to read HTTP.
    needed = own - others - {"starlette", "app"} | {"fastapi-offline", "httptools"}
    assert needed == names(APPLICATION["optional-dependencies"]["api"])
    assert needed & names(APPLICATION["dependencies"]) == set()


def test_the_broker_s_licence_is_that_of_the_repository() -> None:
    assert (ROOT / "sqs_broker/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_whoever_installs_the_application_builds_the_broker_from_the_checkout(file: str) -> None:
    lines = (ROOT / file).read_text().replace("\\\n", " ").splitlines()
    begins = ("RUN pip", "OURS :=")
    words = [line.split() for line in lines if " pip " in line or line.startswith(begins)]
    installing = [each for each in words if {".", "'.[api]'"} & set(each)]
    assert installing
    assert [each for each in installing if "./sqs_broker" not in each] == []


@pytest.mark.parametrize("stamp", ["STAMP", "RUN_STAMP"])
def test_a_changed_dependency_of_either_makes_the_environment_anew(stamp: str) -> None:
    lines = (ROOT / "Makefile").read_text().splitlines()
    (rule,) = (line for line in lines if line.startswith(f"$({stamp}):"))
    assert "$(MANIFESTS)" in rule.split()
    (files,) = (line for line in lines if line.startswith("MANIFESTS :="))
    assert {"pyproject.toml", "sqs_broker/pyproject.toml", "constraints.txt"} <= set(files.split())


def test_no_unit_test_is_slow_for_make_verify_does_not_read_them() -> None:
    files = [*(ROOT / "tests" / "unit").rglob("test_*.py")]
    assert len(files) > 100
    assert [file.name for file in files if "pytest.mark." + "slow" in file.read_text()] == []
