"""admit(): the task that runs a message, or what happened to it instead; asked of no worker."""

from types import SimpleNamespace
from typing import Any

import pytest

from sqs_broker.rules.admission import Admitted, Arrival, admit
from sqs_broker.rules.outcomes import DeadLetter, Refused, UnknownTask, decide
from sqs_broker.rules.policy import Policy
from sqs_broker.rules.provenance import Provenance, Source
from tests.unit.conftest import SENT, MakeDelivery

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"


def message(task: str = "job", source: Source = Source.CELERY, **headers: Any) -> Arrival:
    provenance = Provenance("id-1", True, source, 1, SENT)
    facts = {"task": task, "id": "id-1", "timelimit": None, "delivery": provenance}
    return Arrival({"headers": facts | headers, "body": [[MARKER], {"name": MARKER}, None]})


class Task:
    """What admission asks of a task."""

    name = "job"
    time_limit = 30
    soft_time_limit = 25
    model: type | None = None

    def shown(self, args: Any, kwargs: Any) -> tuple[str, str]:
        return f"{len(args)} hidden", f"{len(kwargs)} hidden"


class Typed(Task):
    model = dict


def test_a_message_of_a_task_that_is_here_may_run() -> None:
    task = Task()
    admitted = admit(message(), {"job": task})
    assert isinstance(admitted, Admitted)
    assert admitted.task is task


def test_what_is_shown_of_the_arguments_is_what_the_task_says() -> None:
    asked = message(argsrepr=MARKER, kwargsrepr=MARKER)
    admitted = admit(asked, {"job": Task()})
    assert isinstance(admitted, Admitted)
    assert admitted.headers["argsrepr"] == "1 hidden"
    assert admitted.headers["kwargsrepr"] == "1 hidden"


def test_a_task_of_celerys_own_class_shows_what_celery_shows() -> None:
    plain = SimpleNamespace(name="job", time_limit=None, soft_time_limit=None)
    admitted = admit(message(), {"job": plain})
    assert isinstance(admitted, Admitted)
    assert admitted.headers == {"timelimit": [None, None]}


@pytest.mark.parametrize(
    ("asked", "limits"),
    [
        (None, [None, None]),
        ([10, 5], [10, 5]),
        ([3000, None], [None, None]),
        ([1e-9, 1e-9], [1, None]),
    ],
)
def test_a_message_has_the_time_limits_that_its_task_allows(asked: Any, limits: Any) -> None:
    admitted = admit(message(timelimit=asked), {"job": Task()})
    assert isinstance(admitted, Admitted)
    assert admitted.headers["timelimit"] == limits


def test_a_message_is_asked_and_not_changed() -> None:
    asked = message(timelimit=[10, 5], argsrepr=MARKER)
    before = dict(asked.content["headers"])
    admit(asked, {"job": Task()})
    assert asked.headers == before


@pytest.mark.parametrize("source", list(Source))
def test_an_unknown_task_is_said_by_its_name(source: Source) -> None:
    assert admit(message("nobody", source), {"job": Task()}) == UnknownTask("nobody")


def test_the_reason_of_an_unknown_task_is_one_short_line(make_delivery: MakeDelivery) -> None:
    outcome = decide(UnknownTask("line\nbreak" * 50), make_delivery(age=600), Policy())
    assert isinstance(outcome, DeadLetter)
    assert outcome.reason.isprintable()
    assert len(outcome.reason) < 150


@pytest.mark.parametrize("source", [Source.JSON, Source.SNS])
def test_plain_json_reaches_only_a_task_that_has_a_model(source: Source) -> None:
    assert isinstance(admit(message(source=source), {"job": Task()}), Refused)
    assert isinstance(admit(message(source=source), {"job": Typed()}), Admitted)
