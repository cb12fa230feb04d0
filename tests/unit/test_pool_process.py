"""A process of the pool shares what its parent has loaded."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Starts a pool of one process, and prints what this process loads of cffi and of its parser.
PROGRAM = """
import os, signal, sys
import billiard
from celery import Celery, signals
from sqs_broker import install
from sqs_broker.worker.prefork import TaskPool

app = Celery("project")
install(app)
url = "https://sqs.eu-west-1.amazonaws.com/1/jobs"
app.conf.broker_transport_options = {
    "region": "eu-west-1", "predefined_queues": {"jobs": {"url": url, "dead_letter_url": None}}
}
loaded = set()
os.register_at_fork(before=lambda: loaded.update(sys.modules))
at, to = os.pipe()

@signals.worker_process_init.connect
def report(**_):
    found = sorted(set(sys.modules) - loaded)
    os.write(to, repr([name for name in found if "cffi" in name or "pycparser" in name]).encode())

pool = TaskPool(1, app=app, initargs=(app, "a name"), threads=False)
pool.start()
print(os.read(at, 65_536).decode(), flush=True)
os.kill(billiard.active_children()[0].pid, signal.SIGKILL)
os._exit(0)
"""


def test_a_process_of_the_pool_does_not_load_cffi_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
