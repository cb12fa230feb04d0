"""Deadlines: as asyncio.timeout, with one timer."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.api.deadlines import Deadlines

#: Seconds that nothing here comes near to.
LONG = 30.0


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), LONG)

    asyncio.run(bounded())


def test_a_block_that_takes_too_long_ends_with_a_timeout() -> None:
    async def test() -> None:
        deadlines = Deadlines(0.01)
        for _ in range(3):  # Also after the timer has fired.
            with pytest.raises(TimeoutError), deadlines.limit():
                await asyncio.Event().wait()
        await asyncio.sleep(0)  # The task is not cancelled.

    run(test)


def test_each_block_has_its_own_time_and_one_that_has_ended_is_left_alone() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(0.2)
        ended: list[float] = []

        async def block(wait: float) -> None:
            await asyncio.sleep(wait)
            began = loop.time()
            try:
                with deadlines.limit():
                    await asyncio.Event().wait()
            except TimeoutError:
                ended.append(loop.time() - began)

        with deadlines.limit():
            pass
        await asyncio.gather(block(0), block(0.1))
        assert all(seconds >= 0.19 for seconds in ended)
        assert len(ended) == 2

    run(test)


def test_a_cancellation_by_somebody_else_stays_one() -> None:
    async def test() -> None:
        deadlines = Deadlines(LONG)
        is_inside = asyncio.Event()

        async def block() -> None:
            with deadlines.limit():
                is_inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(block())
        await is_inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


def test_an_error_of_the_block_stays_one() -> None:
    async def test() -> None:
        with pytest.raises(KeyError), Deadlines(LONG).limit():
            raise KeyError

    run(test)
