import os
from pathlib import Path

from celery import shared_task


@shared_task(bind=True)
def hello(self, name):
    """Fails once."""
    if self.request.retries == 0:
        raise KeyError("once")
    with (Path(os.environ["HOME"]) / "said").open("a") as file:
        file.write(f"hello {name}\n")
    return f"hello {name}"
