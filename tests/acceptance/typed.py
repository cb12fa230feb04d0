"""Lays out files as docs/migrate.md shows them, on servers of a test, and runs commands there."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import Queues, wait_until

ROOT = Path(__file__).resolve().parents[2]

#: Seconds for one command, or for a worker to start.
SECONDS = 60

#: What the page shows in place of a queue of the reader's own.
SHOWN = "https://sqs.eu-central-1.amazonaws.com/123456789012/jobs"


def block(page: str, name: str) -> str:
    """The file of this name on a page of docs/."""
    text = (ROOT / "docs" / page).read_text()
    [found] = re.findall(
        rf"^```python\n# {re.escape(name)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    return str(found)


class Typed:
    """A directory with files of docs/migrate.md, and what somebody types in it."""

    def __init__(self, directory: Path, queues: Queues) -> None:
        self.directory = directory
        self._queues = queues

    def write(self, name: str, *more: str) -> None:
        """Write a file as the page shows it; only where SQS is, and lines at the end, differ."""
        text, queues = block("migrate.md", name), self._queues
        key = '"credentials": {"aws_access_key_id": "test", "aws_secret_access_key": "test"},'
        host = queues.endpoint_url.removeprefix("http://")
        text = (
            text.replace(f"{SHOWN}-dlq", queues.dead_letter_url)
            .replace(SHOWN, queues.url)
            .replace("eu-central-1", queues.region)
            .replace('broker_url="sqs://"', f'broker_url="sqs://test:test@{host}"')
        )
        if "install(app)" in text:
            region = f'"region": "{queues.region}",'
            text = text.replace(region, f'{region} "endpoint_url": "{queues.endpoint_url}", {key}')
        else:
            # kombu speaks https to a host, unless the option that is refused here says otherwise.
            text = text.replace('"region"', '"is_secure": False, "region"')
        (self.directory / name).write_text("\n".join([text, *more, ""]))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Python there."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    @contextmanager
    def worker(self, module: str, *arguments: str) -> Iterator[Path]:
        """A worker of a module, as long as the block; its log."""
        log = self.directory / f"{module}.log"
        with log.open("wb") as stream:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", module, "worker", "-l", "INFO", *arguments],
                cwd=self.directory,
                env=self._environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(lambda: " ready." in log.read_text(), SECONDS, f"worker ready: {log}")
            yield log
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(SECONDS) == 0
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(SECONDS)

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "PYTHONPATH": str(ROOT),
        }
