"""The health checks of a worker that docs/health.md shows and that the templates have."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from infra.templates import read

ROOT = Path(__file__).resolve().parents[1]

PAGE = (ROOT / "docs" / "health.md").read_text()

#: What Kubernetes takes where a probe does not say it:
#: https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/
PROBE = {"timeoutSeconds": 1, "failureThreshold": 3}

#: What pip makes of a console script (https://packaging.python.org/specifications/entry-points).
SCRIPT = """#!{python}
import sys
sys.path.insert(0, {root!r})
from {module} import {function}
sys.exit({function}())
"""


@dataclass(frozen=True)
class HealthCheck:
    """A health check as its platform runs it."""

    where: str
    command: tuple[str, ...]
    timeout: float
    """Seconds after which a run is ended, and has failed."""
    failures: int
    """So many failed runs in a row make a worker unhealthy."""
    file: str
    """The health file of the worker that it belongs to."""

    def status(self, file: Path, environment: Mapping[str, str]) -> int | None:
        """Run it on another file as often as its platform does, until a run ends in time; its exit
        status, or None if none did."""
        runs = (self.run(file, environment) for _ in range(self.failures))
        return next((status for status in runs if status is not None), None)

    def run(self, file: Path, environment: Mapping[str, str]) -> int | None:
        """Run it once on another file; its exit status, or None if it was ended."""
        try:
            return subprocess.run(
                [word.replace(self.file, str(file)) for word in self.command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=self.timeout,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def all_of_them() -> Iterator[HealthCheck]:
    """Each one, from the page and from the templates."""
    yield from _of_kubernetes("docs/health.md", yaml.safe_load(example("yaml")))
    yield _of_ecs("docs/health.md", json.loads(example("json")))
    path = "deploy/kubernetes/worker.yaml"
    for document in yaml.safe_load_all((ROOT / path).read_text()):
        if document["kind"] == "Deployment":
            yield from _of_kubernetes(path, document["spec"]["template"]["spec"])
    task = read("service")["Resources"]["WorkerTask"]["Properties"]
    (container,) = task["ContainerDefinitions"]
    yield _of_ecs("infra/service.yaml", _with_small_letters(container))
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]
    check = compose["healthcheck"]
    yield HealthCheck(
        "docker-compose.yml",
        _command(check["test"]),
        int(check["timeout"].removesuffix("s")),
        check["retries"],
        compose["environment"]["WORKER_HEALTH_FILE"],
    )


def example(language: str) -> str:
    """The block of docs/health.md in this language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def installed(directory: Path) -> dict[str, str]:
    """An environment that finds `sqs-health`, as where the broker is installed, and has nothing
    else set."""
    project = tomllib.loads((ROOT / "sqs_broker" / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"]["sqs-health"].split(":")
    script = directory / "bin" / "sqs-health"
    script.parent.mkdir()
    script.write_text(
        SCRIPT.format(python=sys.executable, root=str(ROOT), module=module, function=function)
    )
    script.chmod(0o755)
    return {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}


def _of_kubernetes(where: str, pod: Mapping[str, Any]) -> Iterator[HealthCheck]:
    (container,) = pod["containers"]
    for name in ("startupProbe", "livenessProbe"):
        probe = PROBE | container[name]
        yield HealthCheck(
            f"{name} of {where}",
            # Without a shell.
            tuple(probe["exec"]["command"]),
            probe["timeoutSeconds"],
            probe["failureThreshold"],
            _file(container["env"]),
        )


def _of_ecs(where: str, container: Mapping[str, Any]) -> HealthCheck:
    check = container["healthCheck"]
    return HealthCheck(
        f"healthCheck of {where}",
        _command(check["command"]),
        check["timeout"],
        check["retries"],
        _file(container["environment"]),
    )


def _command(words: Sequence[str]) -> tuple[str, ...]:
    """What Docker and ECS run: https://docs.docker.com/reference/dockerfile/#healthcheck"""
    kind, *rest = words
    assert kind in ("CMD", "CMD-SHELL"), kind
    return ("/bin/sh", "-c", *rest) if kind == "CMD-SHELL" else tuple(rest)


def _file(variables: Sequence[Mapping[str, Any]]) -> str:
    (found,) = (each["value"] for each in variables if each["name"] == "WORKER_HEALTH_FILE")
    return str(found)


def _with_small_letters(given: Any) -> Any:
    """A part of a template with the names that ECS's API has."""
    if isinstance(given, list):
        return [_with_small_letters(each) for each in given]
    if isinstance(given, dict):
        return {k[0].lower() + k[1:]: _with_small_letters(v) for k, v in given.items()}
    return given
