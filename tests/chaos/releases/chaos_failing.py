"""The task that fails in each run. Every release has it."""

import os
import time

from app.celery import app
from app.messages import Increment, Provenance

#: Seconds of a run, so that a signal may meet it.
LASTS = 0.3


# One less than plan.MOST_RUNS: an older commit cannot import that.
@app.task(name="fail", model=Increment, max_retries=2)
def fail(message: Increment, provenance: Provenance) -> None:
    """Write down that it ran, and fail."""
    time.sleep(LASTS)
    runs = os.open(os.environ["CHAOS_RUNS"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(runs, f"{provenance.message_id}\n".encode())
    finally:
        os.close(runs)
    raise ValueError("as planned")
