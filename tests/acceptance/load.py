"""A queue that is never empty."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.probe.project import ProbeProject


@contextmanager
def load(project: ProbeProject, seconds: float = 0.1) -> Iterator[list[str]]:
    """Keeps the queue filled, with tasks of so many seconds, until the end of the block; the ids of
    what was sent."""
    sent: list[str] = []
    enough = threading.Event()

    def keep_filled() -> None:
        while not enough.is_set():
            if project.queues.counts()[0] < 30:
                sent.extend(project.send("work", seconds) for _ in range(10))
            enough.wait(0.1)

    sender = threading.Thread(target=keep_filled)
    sender.start()
    try:
        yield sent
    finally:
        enough.set()
        sender.join()
