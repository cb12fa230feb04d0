"""Tasks whose classes are not the broker's: from Celery, from libraries, and the project's own."""

import json
import os
from pathlib import Path

from celery import Celery, Task
from celery.contrib.abortable import AbortableTask
from celery_once import QueueOnce
from celery_singleton import Singleton
from celery_singleton.backends import BaseBackend

from sqs_broker import install

HERE = Path(os.environ["HOME"])

app = Celery("shop", backend=f"file://{HERE}/results")
install(app)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
app.conf.ONCE = {"backend": "celery_once.backends.File", "settings": {"location": f"{HERE}/once"}}
app.conf.singleton_backend_class = "shop.FileLocks"
(HERE / "results").mkdir(exist_ok=True)
(HERE / "locks").mkdir(exist_ok=True)


class Forbidden(Exception):
    """A permanent error."""


class FileLocks(BaseBackend):
    """celery-singleton's locks, as files in place of Redis."""

    def __init__(self, *_, **__):
        """Takes a URL, which files do not need."""

    def _path(self, lock):
        return HERE / "locks" / lock

    def lock(self, lock, task_id, expiry=None):
        try:
            with self._path(lock).open("x") as file:
                file.write(task_id)
        except FileExistsError:
            return False
        return True

    def unlock(self, lock):
        self._path(lock).unlink(missing_ok=True)

    def get(self, lock):
        return self._path(lock).read_text() if self._path(lock).exists() else None

    def clear(self, key_prefix):
        for path in (HERE / "locks").iterdir():
            path.unlink()


def say(*words):
    with (HERE / "said").open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


class Hooked(Task):
    """As Celery's documentation shows it."""

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        say(self.name, "on_failure", type(exc).__name__)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        say(self.name, "on_retry", type(exc).__name__)

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        say(self.name, "after_return", status)


@app.task(base=Hooked, name="based", bind=True)
def based(self):
    say("based", "run", self.request.retries)
    if self.request.retries == 0:
        raise KeyError("once")


@app.task(base=Hooked, name="based_forbidden", dead_letter_on=(Forbidden,))
def based_forbidden():
    say("based_forbidden", "run")
    raise Forbidden("this can never work")


class Registered(Hooked):
    """A class-based task."""

    name = "registered"
    max_retries = 1

    def run(self):
        say("registered", "run", self.request.retries)
        raise KeyError("always")


registered = app.register_task(Registered())


@app.task(base=AbortableTask, bind=True, name="abortable")
def abortable(self):
    say("abortable", "run", self.is_aborted())


@app.task(base=Singleton, name="singleton", dead_letter_on=(Forbidden,))
def singleton(how):
    say("singleton", "run", how)
    if how == "forbidden":
        raise Forbidden("this can never work")


@app.task(base=QueueOnce, once={"graceful": True}, name="once", dead_letter_on=(Forbidden,))
def once(how):
    say("once", "run", how)
    if how == "forbidden":
        raise Forbidden("this can never work")
