"""python -m bench.soak MINUTES: one worker under a steady flow; exit 1 where it grows or drifts.

Of twenty messages, one is a user sent a second time, and one is no message at all.
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bench import charts, lab, machine, processes, steadiness
from bench.bodies import Body
from bench.candidates import OURS
from bench.errors import BenchError
from bench.lab import Stage
from bench.sender import BATCH, TICK, Sender, batches, user_id
from bench.steadiness import Account, Sample, Soak
from bench.traffic import ROOT
from devstack.errors import StackError

#: Seconds between two samples.
INTERVAL = 2.0
#: Seconds after the flow in which everything has to be settled.
REST = 90.0
ONE_OF = 20
NO_MESSAGE = "no message"


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="soak-") as directory,
            lab.running(Path(directory)) as at,
        ):
            soak = Soak(
                at=datetime.now(UTC).strftime("%Y-%m-%d"),
                machine=machine.machine(),
                server=at.server.name,
                minutes=options.minutes,
                rate=options.rate,
            )
            with (
                at.stage(OURS, "register", 0) as stage,
                closing(at.sender(stage.place.queues.url)) as sender,
            ):
                flow = Flow(sender, OURS.body("register", stage.place.queue), options.rate)
                _watch(stage, flow, soak)
    except (BenchError, StackError, OSError) as exc:
        sys.stderr.write(f"soak: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return _told(soak, options.out)


@dataclass
class Flow:
    """Sends at a steady rate from a thread of its own."""

    sender: Sender
    body: Body
    rate: float
    sent: int = 0
    users: int = 0
    """Each once, however often it was sent."""
    bad: int = 0
    fault: Exception | None = None
    _number: int = 0
    _last: str = ""

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the last message is sent. Raises BenchError where sending failed."""
        self._stopped.set()
        self._thread.join()
        if self.fault is not None:
            raise BenchError(f"sending failed: {self.fault}")

    def _run(self) -> None:
        started = time.monotonic()
        try:
            while not self._stopped.wait(TICK):
                due = int(self.rate * (time.monotonic() - started)) - self.sent
                for bodies in batches((self._next() for _ in range(due)), BATCH):
                    if self._stopped.is_set():
                        break
                    self.sender.send(bodies)
                    self.sent += len(bodies)
        except Exception as exc:
            # Broad on purpose: it is raised where the flow is stopped.
            self.fault = exc

    def _next(self) -> str:
        self._number += 1
        place = self._number % ONE_OF
        if place == 0:
            self.bad += 1
            return NO_MESSAGE
        if place != 1 or self._number == 1:
            self.users += 1
            self._last = user_id()
        return self.body(self._last)


def _watch(stage: Stage, flow: Flow, soak: Soak) -> None:
    flow.start()
    try:
        started = time.monotonic()
        stage.first_delete()
        while (at := time.monotonic() - started) < soak.minutes * 60:
            stage.check()
            soak.samples.append(_sample(stage, flow, at))
            time.sleep(INTERVAL)
    finally:
        flow.stop()
    stage.wait_until_deleted(flow.sent, REST)
    soak.account = _account(stage, flow)


def _sample(stage: Stage, flow: Flow, at: float) -> Sample:
    used = processes.usage_below(stage.workers[0].guard_pid)
    if used is None:
        raise BenchError("memory and descriptors are read from /proc, which is not here")
    settled = stage.proxy.progress().deleted
    return Sample(
        at,
        used.memory,
        used.descriptors,
        used.threads,
        flow.sent,
        settled,
        # An exact count reads all users, which takes a core of mongod after an hour.
        stage.stored_about(),
    )


def _account(stage: Stage, flow: Flow) -> Account:
    client = stage.lab.server.sqs.client()
    try:
        told = client.get_queue_attributes(
            QueueUrl=stage.place.queues.dead_letter_url,
            AttributeNames=["ApproximateNumberOfMessages"],
        )
    finally:
        client.close()
    return Account(
        sent=flow.sent,
        settled=stage.proxy.progress().deleted,
        users_sent=flow.users,
        users_stored=stage.stored(),
        bad_sent=flow.bad,
        dead_letters=int(told["Attributes"]["ApproximateNumberOfMessages"]),
    )


def _told(soak: Soak, directory: Path) -> int:
    steadiness.save(soak, directory / "soak.json")
    written = [directory / "soak.json"]
    try:
        written += charts.draw_soak(soak, directory)
    except ModuleNotFoundError as exc:
        sys.stdout.write(f"No chart: {exc}. It needs the dependency group bench.\n")
    sys.stdout.write(f"{steadiness.table(soak)}\n")
    for path in written:
        sys.stdout.write(f"wrote {path}\n")
    found = steadiness.faults(soak)
    for fault in found:
        sys.stderr.write(f"soak: {fault}\n")
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second (100)")
    parser.add_argument("--out", type=Path, default=ROOT / ".local" / "bench")
    return parser.parse_args()


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
