"""A producer that starts: what the import of the tasks, the first `.delay` and later ones take.

This file imports nothing else of the benchmark before it has measured, because that would load
libraries that the tasks load too: python -m bench.first_use MESSAGES
"""

import sys
import time


def _send(messages: int) -> None:
    """Write seconds of the import, seconds of the first call, CPU microseconds of a later one."""
    begun = time.monotonic()
    from app.tasks import register_user

    imported = time.monotonic()
    user = {"stock_id": "s1", "user_id": "u1", "user_info": {"nickname": "kim", "gender": "F"}}
    called = time.monotonic()
    register_user.delay(**user)
    ended, used = time.monotonic(), time.process_time()
    for _ in range(messages):
        register_user.delay(**user)
    later_us = (time.process_time() - used) / messages * 1e6
    sys.stdout.write(f"{imported - begun} {ended - called} {later_us}\n")


if __name__ == "__main__":
    _send(int(sys.argv[1]))
