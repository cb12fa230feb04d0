"""The proxy's process, and what it saw."""

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.proxy import Call
from devstack import ports
from devstack.process import Process
from devstack.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 20


@dataclass(frozen=True)
class Progress:
    """How far a worker is."""

    first_delete: float | None
    """Monotonic seconds; the clock is the machine's, so every process agrees on it."""
    deleted: int
    most_open: int
    """Most calls that were open at the same time."""


@dataclass(frozen=True)
class Traffic:
    """A running proxy."""

    process: Process
    port: int

    @property
    def endpoint_url(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    def progress(self) -> Progress:
        """When the first message was deleted, and how many are."""
        return Progress(**self._ask("/progress"))

    def calls(self) -> list[Call]:
        """Every call so far."""
        return [(at, action, messages) for at, action, messages in self._ask("/calls")]

    def _ask(self, path: str) -> Any:
        connection = http.client.HTTPConnection(ports.HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            return json.load(connection.getresponse())
        finally:
            connection.close()


@contextmanager
def running(upstream: int, delay: float, log: Path) -> Iterator[Traffic]:
    """A proxy before the server on port `upstream`, adding `delay` seconds to each call."""
    port = ports.preferred_or_any(None)
    command = [sys.executable, "-m", "bench.proxy", str(port), str(upstream), str(delay)]
    with Process("the proxy", command, log=log, grace=1, directory=ROOT) as process:

        def listens() -> bool:
            process.check()
            return ports.is_listening(port)

        wait_until(listens, START_SECONDS, "a proxy that listens")
        yield Traffic(process, port)
