"""Lays out the probe project in a directory of its own and runs its worker."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from sqs_broker import install
from sqs_broker.worker.shutdown import ONE_STOP
from tests.growing import whole_lines
from tests.services import Queues, wait_until

ROOT = Path(__file__).resolve().parents[2]

#: Seconds a worker may take to start, or to stop.
PATIENCE = 30

#: Seconds until what a worker releases at its stop can be received: its polls are over then. Far
#: less than a visibility timeout.
SOON = 10.0


def await_another_stop() -> None:
    """Wait until a SIGTERM is a second signal, and no longer belongs to the first."""
    now = time.monotonic()
    wait_until(lambda: time.monotonic() > now + ONE_STOP, PATIENCE, "a second")


class ProbeProject:
    """A Celery project that has `sqs_broker` and nothing else of ours, with an empty environment.

    `transport` overrides broker_transport_options, `celery` other settings of Celery. `quiet`:
    whether Celery logs nothing of single messages.
    """

    def __init__(
        self,
        directory: Path,
        queues: Queues,
        *,
        transport: Any = None,
        celery: Any = None,
        quiet: bool = False,
    ) -> None:
        self.directory = directory
        self.queues = queues
        self.transport = {**self._default_transport(), **(transport or {})}
        limits = {"task_soft_time_limit": 25, "task_time_limit": 30}
        settings = {**limits, **(celery or {})}
        self._write({"transport": self.transport, "celery": settings, "quiet": quiet})
        self._workers: list[subprocess.Popen[bytes]] = []
        self._producer = self._make_producer()

    def send(self, task: str, *args: Any, **options: Any) -> str:
        """Send a task of the probe; its id."""
        return str(self._producer.send_task(f"probe.{task}", args=args, **options).id)

    def signature(self, task: str, *args: Any) -> Any:
        """A signature of a task of the probe, for a canvas."""
        return self._producer.signature(f"probe.{task}", args=args, immutable=True)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is ready."""
        log = self.directory / f"worker-{len(self._workers)}.log"
        with log.open("wb") as stream:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "probe", "worker", "-l", "INFO",
                 "-c", "2", "-n", f"w{len(self._workers)}@%h", *arguments],
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._workers.append(worker)
        wait_until(lambda: " ready." in log.read_text(), PATIENCE, f"worker ready: {log}")
        return worker

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command of Celery in the project."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "probe", *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            check=check,
            capture_output=True,
            timeout=PATIENCE,
        )

    def stop(self, worker: subprocess.Popen[bytes]) -> int:
        """Ask a worker to stop (SIGTERM) and wait for it; its exit status."""
        worker.send_signal(signal.SIGTERM)
        return worker.wait(PATIENCE)

    def send_raw(self, body: str) -> None:
        """Put a message on the queue that no Celery has made."""
        self.queues.client.send_message(QueueUrl=self.queues.url, MessageBody=body)

    def close(self) -> None:
        """Kill every worker that is left, with its pool."""
        self._producer.close()
        for worker in self._workers:
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                worker.wait(PATIENCE)

    def events(self, id_: str | None = None, event: str | None = None) -> list[dict[str, Any]]:
        """What the tasks said, in order."""
        said = map(json.loads, whole_lines(self.directory / "probe.log"))
        return [
            line
            for line in said
            if (id_ is None or line["id"] == id_) and (event is None or line["event"] == event)
        ]

    def forget_events(self) -> None:
        """Forget what the tasks said so far. None may run."""
        (self.directory / "probe.log").unlink(missing_ok=True)

    def worker_log(self) -> str:
        """What all workers logged."""
        return "".join(path.read_text() for path in sorted(self.directory.glob("worker-*.log")))

    def notes(self) -> dict[str, dict[str, Any]]:
        """The `dead-letter` note of each dead letter, by message id."""
        notes = [
            json.loads(letter["MessageAttributes"]["dead-letter"]["StringValue"])
            for letter in self.queues.dead_letters()
        ]
        return {note["message_id"]: note for note in notes}

    def wait_for_end(self, id_: str, timeout: float = PATIENCE) -> None:
        """Wait until a task said it ended, and its queue is empty."""
        wait_until(lambda: self.events(id_, "end"), timeout, f"end of {id_}")
        self.wait_for_empty_queue()

    def wait_for_empty_queue(self, timeout: float = PATIENCE) -> None:
        """Wait until everything is settled."""
        wait_until(self.queues.is_empty, timeout, "an empty queue")

    def _default_transport(self) -> dict[str, Any]:
        address = {"url": self.queues.url, "dead_letter_url": self.queues.dead_letter_url}
        return {
            "region": self.queues.region,
            "endpoint_url": self.queues.endpoint_url,
            "credentials": dict(self.queues.credentials),
            "predefined_queues": {self.queues.name: address},
            "wait_time_seconds": 1,
            "backoff_base": 0.01,
            # A test that is not about it would wait for it.
            "unknown_task_grace": 0,
        }

    def _write(self, settings: Any) -> None:
        # A package of its own named `app`, as many projects have.
        package = self.directory / "app"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        shutil.copy(Path(__file__).with_name("probe.py"), self.directory)
        (self.directory / "probe.json").write_text(json.dumps(settings))
        self._write_broker(self.directory / "sqs_broker")

    def _write_broker(self, package: Path) -> None:
        shutil.copytree(ROOT / "sqs_broker", package, ignore=shutil.ignore_patterns("*.pyc"))

    def _make_producer(self) -> Celery:
        producer = Celery("producer", set_as_current=False)
        install(producer)
        producer.conf.update(
            # Straight to the server: what a test counts or breaks is the worker's calls.
            broker_transport_options=self.transport | {"endpoint_url": self.queues.endpoint_url},
            task_queues=[Queue(self.queues.name, Exchange(""), routing_key=self.queues.name)],
            task_default_queue=self.queues.name,
            task_create_missing_queues=False,
            task_ignore_result=True,
        )
        return producer


#: Makes a probe project on the queues of a test; the arguments are settings, see ProbeProject.
MakeProject = Callable[..., ProbeProject]
