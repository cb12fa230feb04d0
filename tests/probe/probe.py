"""Another Celery project, on `sqs_broker` alone: the tests run it with no module of the domain
importable. Its settings are in probe.json beside it, its tasks write what they do to probe.log.
"""

import ctypes
import json
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject
from kombu import Exchange, Queue
from kombu.asynchronous import get_event_loop

from sqs_broker import install

HERE = Path(__file__).resolve().parent
SETTINGS = json.loads((HERE / "probe.json").read_text())
LOG = HERE / "probe.log"

app = Celery("probe")
install(app)
app.conf.update(
    broker_transport_options=SETTINGS["transport"],
    task_queues=[
        Queue(name, Exchange(""), routing_key=name)
        for name in SETTINGS["transport"]["predefined_queues"]
    ],
    task_default_queue=next(iter(SETTINGS["transport"]["predefined_queues"])),
    task_default_exchange="",
    task_default_routing_key=next(iter(SETTINGS["transport"]["predefined_queues"])),
    task_create_missing_queues=False,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_acks_on_failure=False,
    task_acks_on_timeout=False,
    task_ignore_result=True,
    worker_prefetch_multiplier=0,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)
app.conf.update(SETTINGS.get("celery", {}))
if SETTINGS.get("quiet"):
    # Celery's lines about single messages. Without them, messages can be plain.
    for module in "celery.worker.strategy", "celery.worker.request":
        logging.getLogger(module).setLevel(logging.WARNING)


class Forbidden(Exception):
    """A permanent error."""


def say(task, event, **facts):
    line = {"event": event, "id": task.request.id, "retries": task.request.retries, **facts}
    line |= {"pid": os.getpid(), "at": time.time()}
    with LOG.open("a") as log:
        log.write(json.dumps(line) + "\n")


@app.task(bind=True)
def work(self, seconds=0.0):
    """Takes a while."""
    redelivered = self.request.delivery_info["redelivered"]
    say(self, "start", redelivered=redelivered)
    time.sleep(seconds)
    say(self, "end")


@app.task(bind=True)
def hold(self, name):
    """Runs until there is a file of this name here."""
    say(self, "start")
    while not (HERE / name).exists():
        time.sleep(0.05)
    say(self, "end")


@app.task(bind=True)
def fail(self, times):
    """Fails in its first deliveries."""
    say(self, "start")
    if self.request.retries < times:
        raise ValueError("marker-in-an-exception")
    say(self, "end")


@app.task(bind=True)
def fail_then_work(self, seconds):
    """Fails in its first attempt, and takes a while in each later one."""
    say(self, "start")
    if self.request.retries == 0:
        raise ValueError("once")
    time.sleep(seconds)
    say(self, "end")


@app.task(bind=True, dead_letter_on=(Forbidden,))
def forbid(self):
    """Fails for good."""
    say(self, "start")
    raise Forbidden("this can never work")


@app.task(bind=True)
def reject(self, requeue=False):
    """Says Reject."""
    say(self, "start")
    raise Reject("not for me", requeue=requeue)


@app.task(bind=True)
def retry_in(self, seconds):
    """Asks for one retry, with a delay."""
    say(self, "start")
    if self.request.retries == 0:
        self.retry(countdown=seconds)
    say(self, "end")


@app.task(bind=True, max_retries=0)
def fail_at_once(self):
    """Has fewer retries than the queue allows."""
    say(self, "start")
    raise ValueError("once is enough")


@app.task(bind=True, autoretry_for=(ValueError,), retry_backoff=1, retry_jitter=False)
def autoretry(self):
    """Uses Celery's own option."""
    say(self, "start")
    if self.request.retries == 0:
        raise ValueError("again")
    say(self, "end")


@app.task(bind=True)
def die(self, times):
    """Takes its process with it."""
    say(self, "start")
    if self.request.retries < times:
        os.kill(os.getpid(), signal.SIGKILL)
    say(self, "end")


@app.task(bind=True)
def leave(self):
    """Ends its process, or its thread."""
    say(self, "start")
    raise SystemExit(2)


@app.task(bind=True, acks_late=False)
def early(self):
    """Its message is deleted before it runs."""
    say(self, "start")
    raise ValueError("once is enough")


@app.task(bind=True)
def cling(self, seconds):
    """Does not end when its process is told to."""
    say(self, "start")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(until - time.monotonic())
        except SystemExit:
            say(self, "told to end")
    say(self, "end")


def together_many(calls):
    """All at once, where each call says what is to become of it."""
    kinds = [call.args[0] for call in calls]
    for call in calls:
        line = {"event": "together", "id": call.request.id, "size": len(calls), "pid": os.getpid()}
        with LOG.open("a") as log:
            log.write(json.dumps(line) + "\n")
    if "die" in kinds:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in kinds:
        try:
            time.sleep(60)
        finally:
            time.sleep(0.3)
            say(calls[0], "tidied")
    if "slow" in kinds:
        time.sleep(3)
    made = {
        "fail": ValueError("again"),
        "forbid": Forbidden("this can never work"),
        "memory": MemoryError("marker-in-an-exception"),
    }
    return [made.get(kind, "done") for kind in kinds]


@app.task(bind=True, many=together_many, dead_letter_on=(Forbidden,))
def together(self, kind):
    """The same, alone: what failed among others is done here."""
    say(self, "start")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(60)
    if kind == "memory":
        raise MemoryError("marker-in-an-exception")
    say(self, "end")


@app.task(bind=True)
def tidy(self, seconds, more=0.0):
    """Takes a while, and tidies up whatever happens, for some more time."""
    say(self, "start")
    try:
        time.sleep(seconds)
        say(self, "end")
    finally:
        say(self, "tidying")
        time.sleep(more)
        say(self, "tidied")


@app.task(bind=True)
def end_others(self):
    """Ends a program and a fork that it has started, by SIGTERM."""
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(writing, b"runs")
            # Python calls a handler only between two calls: one that comes as a long sleep begins
            # would wait for its end.
            for _ in range(600):
                time.sleep(0.1)
        finally:
            os._exit(7)
    os.read(reading, 4)
    os.kill(child, signal.SIGTERM)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    say(self, "end", program=program.wait(20), process=status)


@app.task(bind=True)
def leave_a_process(self, seconds):
    """Starts a process that outlives its parent."""
    subprocess.run(["sh", "-c", f"sleep {seconds} &"], check=True)
    say(self, "end")


@app.task(bind=True)
def be_terminated(self, times):
    """Has the default handler of SIGTERM in its first deliveries, and gets one."""
    say(self, "start")
    if self.request.retries < times:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    say(self, "end")


@app.task(bind=True)
def run_out_of_memory(self):
    """Fails each time, of what Celery takes for a fault of the worker."""
    say(self, "start")
    raise MemoryError("marker-in-an-exception")


@app.task(bind=True)
def end_the_receiver(self):
    """In a pool of threads: end the thread that receives, as no exception of a call would."""
    for thread in threading.enumerate():
        if thread.name.startswith("sqs-receiver"):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )


@app.task(bind=True)
def hang_the_loop(self, seconds):
    """In a pool of threads: keep the worker's event loop for so long."""
    get_event_loop().call_soon(time.sleep, seconds)


@app.task(bind=True)
def send(self, times):
    """Sends so many messages."""
    for _ in range(times):
        work.delay()
    say(self, "sent")
