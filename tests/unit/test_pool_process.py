"""A process of the pool shares what its parent has loaded, and does not outlive it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: Starts a pool of one process, and prints what it has loaded of cffi's parser, and the signal
#: that it gets if its parent ends.
PROGRAM = """
import os, signal, sys
import billiard
from billiard.util import get_pdeathsig
from celery import Celery, signals
from sqs_broker import install
from sqs_broker.worker.prefork import TaskPool

app = Celery("project")
install(app)
url = "https://sqs.eu-west-1.amazonaws.com/1/jobs"
app.conf.broker_transport_options = {
    "region": "eu-west-1", "predefined_queues": {"jobs": {"url": url, "dead_letter_url": None}}
}
at, to = os.pipe()

@signals.worker_process_init.connect
def report(**_):
    parsers = [name for name in sys.modules if "cparser" in name]
    os.write(to, repr((parsers, get_pdeathsig())).encode())

pool = TaskPool(1, app=app, initargs=(app, "a name"), threads=False)
pool.start()
print(os.read(at, 65_536).decode(), flush=True)
os.kill(billiard.active_children()[0].pid, signal.SIGKILL)
os._exit(0)
"""


def test_a_process_of_the_pool_ends_with_its_parent_and_parses_no_c_for_that() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.stdout.strip(), done.returncode) == ("([], 9)", 0), done.stderr
