"""A producer that knows a task by its name alone checks the arguments by a schema if it has one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery

from sqs_broker import InvalidArguments, PublishError, install, publish_many
from sqs_broker.testing import FakeSqs

SEND = "SendMessage"


@dataclass
class Register:
    """What the task takes."""

    user: str
    money: int = 0

    def __post_init__(self) -> None:
        if self.money < 0:
            raise ValueError("secret")


def register(**_: Any) -> None:
    """The task."""


@pytest.fixture
def make_app(fake: FakeSqs) -> Iterator[Callable[..., Celery]]:
    """Makes a producer that has none of the tasks."""
    apps = []

    def make(**schemas: Any) -> Celery:
        app = Celery("tests", set_as_current=False)
        install(app)
        app.conf.update(
            task_default_queue="jobs",
            task_create_missing_queues=False,
            broker_transport_options=fake.transport_options(schemas=schemas),
        )
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@pytest.mark.parametrize("schema", [Register, f"{__name__}:Register"])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {"user": "u1", "mony": 5}), ((), {}), (("u1", -1), {}), ((1, 2, 3), {})],
)
def test_what_the_schema_refuses_is_not_sent(
    fake: FakeSqs, make_app: Any, schema: Any, args: Any, kwargs: Any
) -> None:
    with pytest.raises(InvalidArguments, match=r"^register: the schema refuses") as raised:
        make_app(register=schema).send_task("register", args, kwargs)
    assert isinstance(raised.value, PublishError | TypeError)
    assert isinstance(raised.value.__cause__, TypeError | ValueError)
    assert "secret" not in str(raised.value)
    assert fake.calls == []


@pytest.mark.parametrize("name", ["register", "other"])
def test_what_the_schema_takes_and_a_task_without_one_are_sent(
    fake: FakeSqs, make_app: Any, name: str
) -> None:
    make_app(register=Register).send_task(name, ("u1",), {"money": 5})
    assert fake.counts == {SEND: 1}


def test_a_message_that_a_task_sends_is_checked_where_it_arrives(
    fake: FakeSqs, make_app: Any
) -> None:
    make_app(register=Register).send_task("register", (), {}, parent_id="id-0", root_id="id-0")
    assert fake.counts == {SEND: 1}


def test_what_the_schema_refuses_among_many_is_in_the_result(make_app: Any) -> None:
    app = make_app(register=Register)
    task = app.task(shared=False, name="register", typing=False)(register)
    published = publish_many(task, [{"user": "u1"}, {"usr": "u2"}])
    assert published.sent == 1
    assert "schema refuses" in published.failed[1]
