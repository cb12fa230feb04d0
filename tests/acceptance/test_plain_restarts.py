"""Workers of plain messages that are stopped again and again under load, and pool processes that
are replaced while messages come: each message is done once, and none is dead-lettered."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.acceptance.lane import TEN, registration
from tests.acceptance.worker import Place, StartWorker, Worker
from tests.services import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PATIENCE = 90

#: Restarts of a worker.
RESTARTS = 10

#: Messages that wait in the queue, at least.
PILE = 30


class Fleet:
    """Workers, and what is sent to them."""

    def __init__(self, where: Place, start: StartWorker, *arguments: str) -> None:
        self.where = where
        self._start = start
        self._arguments = arguments
        self.workers: list[Worker] = []
        self.sent: list[str] = []

    def start(self, *, ready: bool = True) -> Worker:
        worker = self._start(self.where.environment, *self._arguments, ready=ready)
        self.workers.append(worker)
        return worker

    def send(self) -> None:
        """Ten registrations, in one call."""
        ids = [f"u{len(self.sent) + n:05}" for n in range(TEN)]
        self.where.queues.client.send_message_batch(
            QueueUrl=self.where.queues.url,
            Entries=[{"Id": id_, "MessageBody": registration(id_)} for id_ in ids],
        )
        self.sent += ids

    @contextmanager
    def load(self) -> Iterator[None]:
        """The queue is never empty, until the end of the block."""
        enough = threading.Event()

        def keep_filled() -> None:
            while not enough.wait(0.1):
                if self.where.queues.counts()[0] < PILE:
                    for _ in range(PILE // TEN):
                        self.send()

        sender = threading.Thread(target=keep_filled)
        sender.start()
        try:
            yield
        finally:
            enough.set()
            sender.join()

    def ids_of(self, event: str) -> list[str]:
        """The message of each line of this event, of all workers."""
        return [line["message_id"] for worker in self.workers for line in worker.log_lines(event)]

    def done(self) -> int:
        return sum(worker.log_text().count('"message.done"') for worker in self.workers)

    def assert_each_is_done_once(self) -> None:
        """Each message is stored, is done in one run, and used up no attempt."""
        wait_until(self.where.queues.is_empty, PATIENCE, "an empty queue")
        wait_until(lambda: self.done() >= len(self.sent), PATIENCE, "all lines")
        assert sorted(self.ids_of("message.done")) == self.sent
        assert self.ids_of("message.retry") == []
        assert self.where.queues.dead_letters() == []
        users = self.where.database["users"].find({}, {"user_id": 1})
        assert sorted(user["user_id"] for user in users) == self.sent


def test_ten_rolling_restarts_under_load_do_each_message_once(
    own: Place, start_worker: StartWorker
) -> None:
    fleet = Fleet(own, start_worker, "-c", "1")
    # The last one is always about to be ready.
    alive = [fleet.start(), fleet.start(ready=False)]
    with fleet.load():
        for _ in range(RESTARTS):
            alive[1].wait_until_ready()
            alive.append(fleet.start(ready=False))
            wait_until(lambda: alive[0].log_lines("message.done"), PATIENCE, "work")
            assert alive.pop(0).stop() == 0
        alive[1].wait_until_ready()
    fleet.assert_each_is_done_once()
    # They stopped in the middle of it.
    assert fleet.ids_of("message.released")
    assert [worker.stop() for worker in alive] == [0, 0]


@pytest.mark.parametrize(
    "arguments",
    [("--max-tasks-per-child", "3"), ("--max-memory-per-child", "1")],
    ids=["tasks", "memory"],
)
def test_a_process_that_has_run_enough_jobs_or_is_too_large_is_replaced_between_two(
    own: Place, start_worker: StartWorker, arguments: tuple[str, str]
) -> None:
    fleet = Fleet(own, start_worker, "-c", "2", *arguments)
    worker = fleet.start()
    seen = {*worker.pool_pids()}
    first = set(seen)
    with fleet.load():

        def are_replaced() -> bool:
            seen.update(worker.pool_pids())
            return len(seen) >= 8

        worker.wait_for(are_replaced, PATIENCE, "new processes")
    fleet.assert_each_is_done_once()
    assert not first & {*worker.pool_pids()}
    assert fleet.ids_of("message.released") == []
    assert worker.stop() == 0
