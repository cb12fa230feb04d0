"""What the processes of the pool tell is read whole and in order, however the system cuts it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from billiard.common import restart_state
from billiard.connection import Pipe
from celery.concurrency.asynpool import WORKER_UP
from hypothesis import given
from hypothesis import strategies as st
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer

from sqs_broker.worker.loop import Loop
from sqs_broker.worker.pool_answers import Answers

#: Bytes that the system keeps in a pipe.
PIPE = 65_536


class Process:
    """The pipe of a process, and an event loop that reads it."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self.hub = Hub(timer=Timer())
        self.reader, self.writer = Pipe(duplex=False, rnonblock=True)
        self.fd = self.reader.fileno()
        self.known = {self.fd: self}
        self._answers = Answers(
            None, None, {}, None, None, None, restart_state(1, 1), None, None,
            fileno_to_outq=self.known, on_process_alive=hear,
        )  # fmt: skip
        self._answers.register_with_event_loop(self.hub)
        self.hub.add_reader(self.fd, self._answers.handle_event, self.fd)
        self.turns = Loop(self.hub)

    def write(self, part: bytes) -> None:
        os.write(self.writer.fileno(), part)

    def turn(self) -> None:
        """Run the loop while it has something to read."""
        while self.reader.poll():
            next(self.turns)

    def is_read(self) -> bool:
        """Whether the event loop watches the pipe."""
        return self.fd in self.hub.readers

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
        self.hub.close()


@contextmanager
def process(hear: Callable[[Any], None]) -> Iterator[Process]:
    made = Process(hear)
    try:
        yield made
    finally:
        made.close()


def written(*texts: str) -> bytes:
    """What a process writes to tell these texts."""
    reader, writer = Pipe(duplex=False)
    with reader, writer:
        made = b""
        for text in texts:
            writer.send((WORKER_UP, (text,)))
            length = os.read(reader.fileno(), 4)
            made += length + os.read(reader.fileno(), int.from_bytes(length))
        return made


TEXTS = st.lists(st.integers(0, 300).map("x".__mul__), min_size=1, max_size=5)


@given(texts=TEXTS, cuts=st.lists(st.integers(1, 2_000), max_size=8))
def test_answers_are_told_once_and_in_order_however_they_are_cut(
    texts: list[str], cuts: list[int]
) -> None:
    told: list[str] = []
    whole = written(*texts)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    with process(told.append) as of:
        for begin, end in pairwise(places):
            of.write(whole[begin:end])
            of.turn()
        assert told == texts


def test_all_answers_in_a_pipe_are_told_in_one_turn() -> None:
    told: list[str] = []
    with process(told.append) as of:
        of.write(written("a", "b", "c"))
        next(of.turns)
        assert told == ["a", "b", "c"]


def test_an_answer_that_is_larger_than_a_pipe_is_told_whole() -> None:
    told: list[str] = []
    text = "x" * 50_000
    whole = written("a", text, text)
    with process(told.append) as of:
        for begin in range(0, len(whole), PIPE // 2):
            of.write(whole[begin : begin + PIPE // 2])
            of.turn()
        assert told == ["a", text, text]


def test_an_answer_whose_handler_fails_keeps_no_other_back() -> None:
    told: list[str] = []

    def hear(text: str) -> None:
        told.append(text)
        if text == "bad":
            raise ValueError(text)

    with process(hear) as of:
        of.write(written("a", "bad", "b", "bad", "c"))
        next(of.turns)
        assert told == ["a", "bad", "b", "bad", "c"]
        of.write(written("d"))
        next(of.turns)
        assert told[-1] == "d"


def test_the_pipe_of_a_process_that_has_ended_is_not_watched() -> None:
    told: list[str] = []
    with process(told.append) as of:
        of.known.clear()
        of.write(written("a"))
        next(of.turns)
        assert not of.is_read()
        assert told == []


@pytest.mark.parametrize("begun", [b"", written("a")[:2], written("a")[:6]])
def test_a_pipe_that_ends_is_not_watched(begun: bytes) -> None:
    told: list[str] = []
    with process(told.append) as of:
        if begun:
            of.write(begun)
            next(of.turns)
        of.writer.close()
        next(of.turns)
        assert not of.is_read()
        assert told == []
