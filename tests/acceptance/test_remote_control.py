"""Remote control of two real workers, by the commands that people type."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.worker import PROGRAM_SECONDS, Place, Service, Worker, serving, workers

SECRET = "marker-of-a-secret"


@dataclass(frozen=True)
class Pair:
    """Two workers on one queue, and Celery's command line."""

    service: Service
    second: Worker
    names: tuple[str, str]
    home: Path

    def celery(self, *arguments: str, status: int = 0) -> str:
        """What a command of Celery's prints."""
        ran = subprocess.run(
            ["celery", "-A", "app", *arguments],
            env=dict(self.service.environment),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def ask(self, kind: str, *arguments: str) -> list[Any]:
        """The answer of each worker to `celery inspect` or `celery control`, in order."""
        said = self.celery(kind, "--json", "--timeout", "5", "-d", ",".join(self.names), *arguments)
        answers = json.loads(said)
        if isinstance(answers, list):
            answers = {name: answer for one in answers for name, answer in one.items()}
        return [answers[name] for name in self.names]


@pytest.fixture(scope="module")
def pair(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = tmp_path_factory.mktemp("pair")
    with (
        serving(where, home, "-n", "one@test") as service,
        workers(home / "second") as start,
    ):
        second = start(service.environment, "-n", "two@test")
        yield Pair(service, second, ("one@test", "two@test"), home)


def test_every_worker_answers_a_ping(pair: Pair) -> None:
    assert pair.ask("inspect", "ping") == [{"ok": "pong"}] * 2
    assert "2 nodes online" in pair.celery("status")
