"""Sends registrations at the rates of a shape: with k6, or without it from a process like this."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.errors import BenchError
from bench.load.shape import Shape
from bench.traffic import ROOT
from sqs_broker.machine import files

SCRIPT = Path(__file__).with_name("registrations.js")
#: Seconds after the last request in which the sender ends.
PATIENCE = 60


@dataclass(frozen=True)
class Sent:
    """One request and its answer."""

    user: str
    id: str | None
    """The id of the registration, if it was accepted."""
    began: float
    """Milliseconds since the epoch."""
    milliseconds: float
    """Until the answer."""
    status: int
    """HTTP status; 0: there was no answer."""
    fault: int | None = None
    """Why there was none, or another than 202: k6's code
    (https://grafana.com/docs/k6/latest/javascript-api/error-codes/)."""

    @property
    def kind(self) -> str | None:
        """The kind of error; None if it was accepted."""
        if self.id is not None:
            return None
        return f"HTTP {self.status}" if self.status else f"no answer (code {self.fault})"

    @property
    def accepted_at(self) -> float:
        """Seconds since the epoch."""
        return (self.began + self.milliseconds) / 1000


def k6() -> str | None:
    """The k6 on the PATH, or else that of the dependency group `load`."""
    return shutil.which("k6") or shutil.which("k6", path=sysconfig.get_path("scripts"))


def send(shape: Shape, url: str, run: str, directory: Path, program: str | None) -> list[Sent]:
    """Send them, with this k6 or without one. Raises BenchError if that fails."""
    log, output = directory / "requests.jsonl", directory / "sender.log"
    files.replace(log, b"", files.PRIVATE)
    if program is None:
        command = [sys.executable, "-m", "bench.load.clients", str(log)]
    else:
        command = [program, "run", "--quiet", "--no-usage-report", "--address", "127.0.0.1:0"]
        command += ["--log-format", "raw", "--console-output", str(log), str(SCRIPT)]
    with files.create(output, files.PRIVATE) as out:
        try:
            done = subprocess.run(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=_environment(shape.environment() | {"API_URL": url, "RUN": run, "LOG": "1"}),
                timeout=shape.seconds + PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise BenchError("the sender of requests has not ended in time") from None
    if done.returncode:
        raise BenchError(f"the sender of requests failed: {output.read_text()[-500:]}")
    return read(log)


def read(log: Path) -> list[Sent]:
    """The requests in a file of lines of JSON. Lines of k6's own are left out."""
    adapter, found = TypeAdapter(Sent), []
    for line in log.read_bytes().splitlines():
        try:
            found.append(adapter.validate_json(line))
        except ValidationError:
            continue
    return found


def _environment(its_own: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return inherited | dict(its_own) | {"PYTHONPATH": str(ROOT), "K6_NO_USAGE_REPORT": "true"}
