"""python -m bench.listener: hears the events of this project's workers, as Flower does.

Writes `ready` once it hears a worker, and at SIGTERM how many task events it heard and how late.
"""

import json
import signal
import sys
import time
from typing import Any

from app.celery import app
from bench.figures import percentile


def main() -> None:
    """Listen until SIGTERM."""
    lags: list[float] = []
    is_ready = False

    def hear(event: dict[str, Any]) -> None:
        nonlocal is_ready
        if not is_ready:
            is_ready = True
            _say("ready")
        if event["type"].startswith("task-"):
            lags.append((time.time() - event["timestamp"]) * 1000)

    signal.signal(signal.SIGTERM, _stop)
    try:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": hear})
            receiver.capture(limit=None, timeout=None, wakeup=False)
    except KeyboardInterrupt:
        _say(json.dumps({"heard": len(lags), "lag_p99": percentile(lags, 0.99)}))


def _stop(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
