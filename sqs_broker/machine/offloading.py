"""Runs work that blocks beside an asyncio event loop."""

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

#: Threads for such work in one process. They are not those of the event loop, which also resolve
#: the names of hosts: work that blocks must not occupy them.
THREADS = 32

_pool: ThreadPoolExecutor | None = None


async def off_loop(work: Callable[[], T]) -> T:
    """Run `work` on a thread, in a copy of this context. If all threads are busy, it waits for one.

    If the caller is cancelled, work that has not begun is not done. Other work runs to its end.
    """
    run = contextvars.copy_context().run
    return await asyncio.get_running_loop().run_in_executor(_threads(), run, work)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="off-loop")
    return _pool


def _forget() -> None:
    global _pool
    _pool = None


# The child of a fork has none of the threads.
os.register_at_fork(after_in_child=_forget)
