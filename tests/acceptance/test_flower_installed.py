"""Flower in the environment of another project: the broker with its extras, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
from requests import Response, Session

from devstack import ports
from tests.acceptance import foreign
from tests.acceptance.foreign import PATIENCE, Project
from tests.services import Queues, wait_until
from tests.wheels import Wheels

pytestmark = pytest.mark.slow

LOGIN = ("kim", "hunter2-7d1f")

CARD = "marker-of-a-card"

#: What a project adds to the README's example for events, and two tasks: one succeeds.
SHOP = """
@app.task(name="pay", dead_letter_on=(LookupError,))
def pay(card, known):
    if not known:
        raise LookupError("no such card")
app.conf.broker_transport_options |= {"wait_time_seconds": 1, "control": %r}
app.conf.task_ignore_result = True
"""

SEND = f"from app import pay; print(*(pay.delay('{CARD}', known=known).id for known in (1, 0)))"


class Flower:
    """Flower of a project, as a person with a login sees it."""

    def __init__(self, port: int) -> None:
        self._url = f"http://{ports.HOST}:{port}"
        self._session = Session()
        self._session.auth = LOGIN

    def get(self, path: str) -> Response:
        return self._session.get(self._url + path, timeout=PATIENCE)

    def get_as_a_stranger(self, path: str) -> Response:
        with Session() as stranger:
            return stranger.get(self._url + path, timeout=PATIENCE)

    def post(self, path: str, **fields: str) -> Response:
        """Send a form of the page of dead letters."""
        token = self._session.cookies["_xsrf"]
        given = fields | {"_xsrf": token}
        return self._session.post(self._url + path, data=given, timeout=PATIENCE)

    def tasks(self) -> dict[str, Any]:
        """What Flower knows of each task, by its id."""
        return dict(self.get("/api/tasks").json())

    def close(self) -> None:
        self._session.close()


@pytest.fixture
def project(tmp_path: Path, wheels: Wheels, queues: Queues, mongo_uri: str) -> Project:
    """The README's example with a control plane, where `celery-sqs-broker[flower,mongodb]` is."""
    python = foreign.environment(tmp_path / "venv", wheels.broker, "flower", "mongodb")
    made = Project(tmp_path, python, queues)
    # A database that is gone after the test (`mongo_uri`).
    database = mongo_uri.rpartition("/")[2].partition("?")[0]
    made.configure(SHOP % {"database_uri": mongo_uri, "database": f"{database}_control"})
    return made


def test_flower_has_the_broker_s_pages_and_login_and_hides_what_may_be_personal(
    project: Project, queues: Queues
) -> None:
    port = ports.preferred_or_any(None)
    flags = (f"--port={port}", f"--address={ports.HOST}", f"--basic_auth={':'.join(LOGIN)}")
    # Without -E, Flower turns the events of a new worker on some seconds after its start.
    with project.celery("flower", *flags) as process, project.worker("-E"):
        process.wait_until_listening(port, PATIENCE)
        flower = Flower(port)
        wait_until(lambda: "celery@" in flower.get("/workers?json=1").text, PATIENCE, "a worker")
        paid, failed = project.run("-c", SEND).stdout.split()
        wait_until(
            lambda: {"SUCCESS", "FAILURE"} <= {each["state"] for each in flower.tasks().values()},
            PATIENCE,
            f"both tasks: {process.log}",
        )
        wait_until(queues.is_empty, PATIENCE, "an empty queue")

        for path in ("/", "/broker", "/dead-letters", "/metrics", "/api/tasks"):
            assert flower.get_as_a_stranger(path).status_code == 401
        broker = flower.get("/broker").text
        assert "dead letters of jobs" in broker
        tasks = flower.tasks()
        assert {id_: tasks[id_]["state"] for id_ in (paid, failed)} == {
            paid: "SUCCESS", failed: "FAILURE",
        }  # fmt: skip
        assert "LookupError" in tasks[failed]["exception"]
        listed = read_dead_letters(flower)
        assert "no such card" in listed
        (letter,) = re.findall(r'name="letter" value="([^"]+)"', listed)
        shown = flower.post("/dead-letters/show", letter=letter, plain="no").text
        assert "(hidden)" in shown
        pages = [broker, listed, shown, str(tasks), flower.get(f"/task/{failed}").text]
        assert [page for page in pages if CARD in page] == []
        assert CARD in flower.post("/dead-letters/show", letter=letter, plain="yes").text
        flower.close()


def read_dead_letters(flower: Flower) -> str:
    """The page, once it has read all dead letters."""
    assert flower.get("/dead-letters").status_code == 200
    assert flower.post("/dead-letters/read").status_code == 200
    return wait_until(
        lambda: text if 'id="snapshot"' in (text := flower.get("/dead-letters").text) else "",
        PATIENCE,
        "the dead letters",
    )
