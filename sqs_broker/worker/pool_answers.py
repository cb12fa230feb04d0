"""Reads the answers of the processes of the prefork pool: all that is in a pipe with one call.

A process answers twice for each job: when it takes it, and when the job has ended. Celery reads one
answer at a time, by two calls, and registers the pipe again for each (celery 5.7
concurrency/asynpool.py, `_recv_message`). Each of these calls lets another thread have Python's
lock. While many jobs end, both answers of a job are often in its pipe at the same time.
"""

import os
import pickle
from collections.abc import Callable, Generator, Iterator
from struct import Struct
from typing import Any

from celery.concurrency import asynpool

#: What a process writes before an answer: its length (billiard 4.3 connection.py, `_send_bytes`).
LENGTH = Struct("!I")

#: Bytes that one call reads: as many as the system keeps in a pipe.
MOST_READ = 65_536


class Answers(asynpool.ResultHandler):
    """Reads the answers of the processes. Its event loop calls `handle_event` if a pipe can be
    read."""

    def _make_process_result(self, hub: Any) -> Callable[[int], None]:
        def on_readable(fd: int) -> None:
            if fd not in self.fileno_to_outq:
                hub.remove_reader(fd)  # Its process has ended.
                return
            try:
                read = os.read(fd, MOST_READ)
            except BlockingIOError:
                return
            except OSError:
                hub.remove_reader(fd)
                return
            if not read:
                hub.remove_reader(fd)
                return
            answers, begun = _split(read)
            if begun:
                # As a generator on the hub: so a shutdown finds what it must still read (celery 5.7
                # concurrency/asynpool.py, `_finish_partial_read`).
                hub.add_reader(fd, self._finish(hub, fd, begun))
            self._tell(iter(answers))

        return on_readable

    def _finish(self, hub: Any, fd: int, begun: bytes) -> Generator[None]:
        """Read the rest of one answer, and nothing after it."""
        answer = bytearray(begun)
        while missing := _missing(answer):
            try:
                read = os.read(fd, min(missing, MOST_READ))
            except BlockingIOError:
                yield
                continue
            if not read:
                raise EOFError  # Its process has ended: the hub stops watching the pipe.
            answer += read
        hub.add_reader(fd, self.handle_event, fd)
        self._tell(iter([memoryview(answer)[LENGTH.size :]]))

    def _tell(self, answers: Iterator[memoryview]) -> None:
        """Tell the pool of each answer, also if it fails with one before."""
        try:
            for answer in answers:
                if message := pickle.loads(answer):
                    self.on_state_change(message)
        except BaseException:
            self._tell(answers)
            raise


def _split(read: bytes) -> tuple[list[memoryview], bytes]:
    """The whole answers in what was read, and the beginning of the next one."""
    answers, view, at = [], memoryview(read), 0
    while not _missing(view[at:]):
        begin = at + LENGTH.size
        at = begin + LENGTH.unpack_from(read, at)[0]
        answers.append(view[begin:at])
    return answers, read[at:]


def _missing(answer: bytearray | memoryview) -> int:
    """How many bytes an answer still needs. First it needs its length."""
    if len(answer) < LENGTH.size:
        return LENGTH.size - len(answer)
    (length,) = LENGTH.unpack_from(answer)
    return max(LENGTH.size + int(length) - len(answer), 0)
