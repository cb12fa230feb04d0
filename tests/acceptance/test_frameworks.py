"""Other people's projects on this broker: Django, Flask, and classes of tasks from libraries."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from requests import get

from devstack import ports
from devstack.process import Process
from tests.growing import whole_lines
from tests.services import Queues, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

#: Seconds that a worker, or a command, may take.
PATIENCE = 60


class Project:
    """One of tests/projects, on the queues of a test."""

    def __init__(self, name: str, home: Path, queues: Queues) -> None:
        self.home, self.queues = home, queues
        self._directory = ROOT / "tests" / "projects" / name
        address = {"url": queues.url, "dead_letter_url": queues.dead_letter_url}
        self.options: dict[str, Any] = {
            "region": queues.region,
            "endpoint_url": queues.endpoint_url,
            "credentials": {"aws_access_key_id": "test", "aws_secret_access_key": "test"},
            "predefined_queues": {"jobs": address},
            "wait_time_seconds": 1,
            "backoff_base": 0.01,
        }
        self._home = str(home)

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": self._home,
            "PYTHONPATH": os.pathsep.join([str(self._directory), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BROKER_OPTIONS": json.dumps(self.options),
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run this Python with these arguments."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def celery(self, app: str, *arguments: str) -> Process:
        """A command of Celery, stopped (SIGTERM) at the end of the block."""
        return Process(
            arguments[0],
            [sys.executable, "-m", "celery", "-A", app, *arguments],
            log=self.home / f"{arguments[0]}.log",
            grace=PATIENCE,
            environment=self._environment,
            directory=self.home,
        )

    def tool(self, file: str) -> Process:
        """A program in the home of the project, stopped (SIGTERM) at the end of the block."""
        return Process(
            file,
            [sys.executable, file],
            log=self.home / f"{file}.log",
            grace=PATIENCE,
            environment=self._environment,
            directory=self.home,
        )

    def python(self, program: str) -> str:
        """Run a program, which must succeed; what it prints."""
        ran = self.run("-c", program)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def said(self) -> list[str]:
        """What the tasks said."""
        return whole_lines(self.home / "said")

    def reasons(self) -> list[str]:
        """The reasons of all dead letters."""
        return sorted(
            json.loads(letter["MessageAttributes"]["dead-letter"]["StringValue"])["reason"]
            for letter in self.queues.dead_letters()
        )


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, queues: Queues) -> Project:
    """The project that the parameter names."""
    return Project(request.param, tmp_path, queues)


SEND = """
from shop import abortable, based, based_forbidden, once, registered, singleton
for task in (abortable, based, based_forbidden, registered):
    task.delay()
for task in (once, singleton):
    for how in ("forbidden", "well"):
        task.delay(how)
print(once.delay("well").state, singleton.delay("well").id == singleton.delay("well").id)
"""

SEND_AGAIN = """
from shop import once, singleton
for task in (once, singleton):
    for how in ("forbidden", "well"):
        task.delay(how)
"""


@pytest.mark.parametrize("project", ["classes"], indirect=True)
def test_a_task_of_any_class_has_every_promise(project: Project) -> None:
    assert project.python(SEND).split() == ["REJECTED", "True"]
    with project.celery("shop", "worker", "-l", "INFO", "-c", "2") as worker:
        wait_until(lambda: len(project.said()) >= 17, PATIENCE, f"all runs: {worker.log}")
        wait_until(project.queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")
        said = project.said()
        # Their hooks have freed the locks, also after a permanent failure: so they run again.
        project.python(SEND_AGAIN)
        wait_until(lambda: len(project.said()) >= 21, PATIENCE, f"more runs: {worker.log}")
        wait_until(project.queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")
    assert sorted(said) == sorted(
        [
            "abortable run False",
            "based run 0",
            "based on_retry KeyError",
            "based run 1",
            "based after_return SUCCESS",
            "based_forbidden run",
            "based_forbidden on_failure Forbidden",
            "based_forbidden after_return FAILURE",
            "registered run 0",
            "registered on_retry KeyError",
            "registered run 1",
            "registered on_failure KeyError",
            "registered after_return FAILURE",
            "once run forbidden",
            "once run well",
            "singleton run forbidden",
            "singleton run well",
        ]
    )
    assert sorted(project.said()[17:]) == sorted(
        one for one in said if " run " in one and (one.startswith(("once", "singleton")))
    )
    reasons = project.reasons()
    assert reasons.count("this can never work") == 5
    assert "in the last attempt with KeyError" in " ".join(reasons)
    assert len(reasons) == 6


@pytest.mark.parametrize("project", ["classes"], indirect=True)
def test_a_task_that_cannot_be_mixed_stops_its_worker_by_name(project: Project) -> None:
    ran = project.run("-m", "celery", "-A", "refused", "worker", "--pool", "solo")
    assert ran.returncode == 1
    *_, line = ran.stderr.strip().splitlines()
    assert "refused.job (its class OwnRetry has its own `retry`)" in line
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("project", ["classes"], indirect=True)
def test_flower_of_any_project_has_the_pages_of_the_broker(
    project: Project, mongo_uri: str
) -> None:
    project.options["control"] = {"database_uri": mongo_uri}
    port = ports.preferred_or_any(None)
    arguments = (f"--port={port}", f"--address={ports.HOST}", "--basic_auth=kim:secret")
    with project.celery("shop", "flower", *arguments) as flower:
        flower.wait_until_listening(port, PATIENCE)
        page = f"http://kim:secret@{ports.HOST}:{port}"
        assert get(f"{page}/broker").status_code == 200
        assert "dead letters of jobs" in get(f"{page}/broker").text
        assert [queue["name"] for queue in get(f"{page}/api/queues/length").json()["active_queues"]]
        assert get(f"http://{ports.HOST}:{port}/metrics").status_code == 401


#: A tool as celery-exporter is one: it makes an app of a URL, and reads events.
URL_ONLY = """
import json, os
from celery import Celery

def cli():
    app = Celery(broker="sqs://")
    app.conf["broker_transport_options"] = json.loads(os.environ["BROKER_OPTIONS"])
    state = app.events.State()

    def show(event):
        state.event(event)
        print(event["type"], event.get("exception"), event.get("queue"), flush=True)

    handlers = {"task-failed": show, "worker-heartbeat": show}
    with app.connection() as connection:
        app.events.Receiver(connection, handlers=handlers).capture(limit=None)
"""


PLAIN = """
import json, os
from celery import Celery
from sqs_broker import install
app = Celery("plain")
install(app)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])
app.conf.worker_send_task_events = True

class Forbidden(Exception):
    pass

@app.task(dead_letter_on=(Forbidden,))
def fail():
    raise Forbidden
"""


ON_MEMORY = (
    PLAIN
    + """
from celery.contrib.testing.worker import start_worker

@app.task(bind=True)
def add(self, x, y):
    if self.request.retries == 0:
        raise self.retry(args=(x, y + 1), countdown=0)
    return x + y

app.conf.update(broker_url="memory://", result_backend="cache+memory://")
with start_worker(app, perform_ping_check=False, pool="solo"):
    assert add.delay(1, 2).get(timeout=20) == 4
    try:
        fail.delay().get(timeout=20)
    except Forbidden:
        pass
    else:
        raise AssertionError("it did not fail")
"""
)


@pytest.mark.parametrize("project", ["plain"], indirect=True)
def test_a_project_can_test_its_tasks_on_memory(project: Project) -> None:
    project.python(ON_MEMORY)
    assert project.queues.counts() == (0, 0, 0)


@pytest.mark.parametrize("project", ["plain"], indirect=True)
def test_a_tool_that_knows_a_url_only_sees_events_with_the_lines_of_the_page(
    project: Project, mongo_uri: str
) -> None:
    # A database that is gone after the test (`mongo_uri`).
    database = mongo_uri.rpartition("/")[2].partition("?")[0]
    project.options["control"] = {"database_uri": mongo_uri, "database": f"{database}_control"}
    page = (ROOT / "docs" / "exporters.md").read_text()
    [lines] = re.findall(r"```python\n# exporter.py\n(.*?)```", page, re.DOTALL)
    (project.home / "exporter.py").write_text(lines)
    (project.home / "plain.py").write_text(PLAIN)
    (project.home / "src").mkdir()
    (project.home / "src" / "cli.py").write_text(URL_ONLY)
    with project.tool("exporter.py") as tool, project.celery("plain", "worker", "-c", "1"):
        wait_until(lambda: "worker-heartbeat" in tool.log.read_text(), PATIENCE, "a worker")
        project.python("from plain import fail; fail.delay()")
        wait_until(lambda: "task-failed" in tool.log.read_text(), PATIENCE, "the failure")
    assert "task-failed Forbidden(" in tool.log.read_text()


REPORTED = """
import json, os
import sentry_sdk
from celery import Celery
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport
from sqs_broker import install

class Keeping(Transport):
    def capture_envelope(self, envelope):
        with open(os.environ["HOME"] + "/said", "a") as file:
            for item in envelope.items:
                if item.type == "event":
                    event = item.payload.json
                    kinds = [each["type"] for each in event.get("exception", {}).get("values", [])]
                    file.write((kinds or [event["logentry"]["message"]])[-1] + chr(10))

sentry_sdk.init(
    dsn="http://key@127.0.0.1:1/1", transport=Keeping, integrations=[CeleryIntegration()]
)
app = Celery("reported")
install(app)
app.conf.broker_transport_options = json.loads(os.environ["BROKER_OPTIONS"])

class Forbidden(Exception):
    pass

@app.task(dead_letter_on=(Forbidden,))
def forbid():
    raise Forbidden

@app.task(max_retries=1)
def fail():
    raise KeyError

@app.task(max_retries=0)
def leave():
    os._exit(1)

@app.task
def work():
    pass
"""


@pytest.mark.parametrize("project", ["reported"], indirect=True)
def test_sentry_has_one_error_for_each_failure(project: Project) -> None:
    (project.home / "reported.py").write_text(REPORTED)
    with project.celery("reported", "worker", "-c", "1") as worker:
        project.python(
            "from reported import *\nfor task in (work, fail, forbid, leave): task.delay()"
        )
        project.queues.client.send_message(QueueUrl=project.queues.url, MessageBody="nothing")
        wait_until(lambda: len(project.reasons()) == 4, PATIENCE, f"the dead letters: {worker.log}")
        wait_until(project.queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")
    assert sorted(project.said()) == [
        "Forbidden",
        "KeyError",
        "Message dead-lettered: %s.",
        # Celery says so of each process that ends by itself, and then what it has cost.
        "Process %r pid:%r exited with %r",
        "WorkerLostError",
    ]


@pytest.mark.parametrize("project", ["flask_site"], indirect=True)
def test_flasks_factory_runs_each_task_in_its_context(project: Project) -> None:
    project.python("from site_app import add_together; add_together.delay(1, 2)")
    with project.celery("site_app:celery_app", "worker", "-l", "INFO", "-c", "1") as worker:
        wait_until(project.said, PATIENCE, f"the run: {worker.log}")
        wait_until(project.queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")
    assert project.said() == ["hello 3"]
    assert project.reasons() == []


DJANGO = "import site1, django; django.setup(); from blog.tasks import hello\n"

CALLS = (
    DJANGO
    + """
from django.db import transaction
print(hello.delay("now").id)
with transaction.atomic():
    hello.delay_on_commit("after the commit")
try:
    with transaction.atomic():
        hello.delay_on_commit("never")
        raise KeyError
except KeyError:
    pass
"""
)

SCHEDULE = (
    DJANGO
    + """
import json
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
PeriodicTask.objects.create(
    interval=every, name="scheduled", task="blog.tasks.hello", args=json.dumps(["beat"])
)
"""
)

RESULT = DJANGO + "print(hello.AsyncResult({id_!r}).get(timeout=20))"


@pytest.mark.parametrize("project", ["django_site"], indirect=True)
def test_a_django_project_runs_its_tasks_and_its_schedule(project: Project) -> None:
    django = "import site1; from django.core.management import execute_from_command_line as run\n"
    project.python(f"{django}run(['manage.py', 'migrate', '-v', '0'])")
    id_ = project.python(CALLS).strip()
    project.python(SCHEDULE)
    with project.celery("site1", "worker", "-l", "INFO", "-c", "1") as worker:
        wait_until(lambda: len(project.said()) >= 2, PATIENCE, f"both runs: {worker.log}")
        assert sorted(project.said()) == ["hello after the commit", "hello now"]
        assert project.python(RESULT.format(id_=id_)).strip() == "hello now"
        with project.celery("site1", "beat") as beat:
            wait_until(lambda: "hello beat" in project.said(), PATIENCE, f"a turn: {beat.log}")
        wait_until(project.queues.is_empty, PATIENCE, f"an empty queue: {worker.log}")
    assert "hello never" not in project.said()
    assert project.reasons() == []
