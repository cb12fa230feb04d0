"""TypedTask: wrong arguments raise where they are given, and no personal value is ever shown."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, group
from celery.exceptions import Retry
from kombu import Connection
from pydantic import ConfigDict, field_validator

from app.celery import Registrations, app
from app.errors import Conflict, TransientError
from app.messages import Message, Provenance, Source
from app.tasks import increment, register_user
from app.typed_task import MOST_UNKNOWN, InvalidMessage
from sqs_broker.errors import ConfigurationError
from sqs_broker.worker.batch import Call

#: Stands where a user could have typed something.
MARKER = "Kim-1f9c"

DELIVERY = Provenance("id-1", True, Source.SNS, 2, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
USER_INFO = {"nickname": MARKER}


class Greeting(Message):
    """What the tests' own task is given."""

    shown = frozenset({"place", "times"})

    place: str
    name: str
    times: int = 1


class Free(Message):
    """Takes any other fields too."""

    model_config = ConfigDict(extra="allow")

    name: str


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a producer needs, and a server that nobody reaches."""
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SQS_QUEUE_URL", "http://127.0.0.1:1/000000000000/sdc-sqs")


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    """An app with the task class and no broker to speak of."""
    app = Registrations("tests", task_cls="app.typed_task:TypedTask", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        task_default_queue="jobs",
        task_ignore_result=True,
        task_acks_late=True,
        broker_transport_options={
            "region": "us-east-1",
            "predefined_queues": {"jobs": {"url": "http://127.0.0.1:1/jobs"}},
        },
    )
    yield app
    app.close()


@pytest.fixture
def greet(celery_app: Celery) -> Any:
    """A task that returns what it was given."""

    @celery_app.task(shared=False, name="greet", model=Greeting)
    def greet(message: Greeting, provenance: Provenance) -> tuple[Greeting, Provenance]:
        return message, provenance

    return greet


def sent_by(send: Any) -> dict[str, Any]:
    """The one message that `send(connection)` puts on the queue."""
    with Connection("memory://") as connection:
        # The queues of this transport are those of the whole process.
        connection.default_channel.queue_declare("jobs")
        connection.default_channel.queue_purge("jobs")
        send(connection)
        message = connection.SimpleQueue("jobs").get(timeout=1)
        return {"headers": message.headers, "payload": message.payload}


def takes_one(message: Any) -> None: ...


def takes_two(message: Any, provenance: Any) -> None: ...


def takes_more(message: Any, provenance: Any, *, more: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (takes_one, {}),
        (takes_two, {"bind": True}),
        (takes_more, {}),
    ],
)
def test_a_function_that_cannot_take_a_message_and_its_provenance_is_refused_at_the_start(
    celery_app: Celery, function: Any, options: dict[str, Any]
) -> None:
    celery_app.task(shared=False, name="greet", model=Greeting, **options)(function)
    with pytest.raises(ConfigurationError, match=r"Task greet: .* must take \(message, provenance"):
        celery_app.finalize()


# At the caller


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize(
    ("task", "args", "kwargs", "fault"),
    [
        (register_user, (), {}, "stock_id: Field required"),
        (register_user, ("s1",), {"user_info": USER_INFO}, "user_id: Field required"),
        (register_user, ("s1", 7, USER_INFO), {}, "user_id: Input should be a valid string"),
        (register_user, ("s1", "u1", MARKER), {}, "user_info: Input should be"),
        (register_user, ("s1", "u1", {"nickname": {"$gt": ""}}), {}, "user_info.nickname: Input"),
        (register_user, ("s1", "u1", USER_INFO, 0, 0, 0, 0), {}, "takes at most 6 arguments"),
        (register_user, ("s1", "u1"), {"userId": "u2"}, "multiple values for argument 'user_id'"),
        (register_user, ("s1", "u1", USER_INFO), {"mony": 5}, "mony: there is no such field; did "),
        (register_user, ("s1", "u1", USER_INFO), {"mony": 5}, "did you mean money?"),
        (register_user, ("s1", "u1", USER_INFO), {"loanCout": 5}, "did you mean loan_count?"),
        (register_user, ("s1", "u1", USER_INFO | {"gendr": ""}), {}, "mean user_info.gender?"),
        (register_user, ("s1", "u1", USER_INFO), {"xyzzy": 5}, "; the fields are index, loan_coun"),
        (register_user, ("s1", "u1", USER_INFO | {MARKER: 1}), {}, "user_info.…: there is no"),
        (increment, (), {"input": True}, "input"),
    ],
)
def test_wrong_arguments_raise_at_the_caller_and_name_the_field(
    task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidMessage) as raised:
        task.delay(*args, **kwargs)
    assert str(raised.value).startswith(f"{task.name}: ")
    assert fault in str(raised.value)
    assert MARKER not in str(raised.value)
    # As of any function.
    assert isinstance(raised.value, TypeError)


@pytest.mark.parametrize("way", ["delay", "apply_async", "signature", "direct", "apply", "eager"])
def test_every_way_of_sending_or_calling_checks_first(
    celery_app: Celery, greet: Any, way: str
) -> None:
    celery_app.conf.task_always_eager = way == "eager"
    call = {
        "delay": lambda: greet.delay("here"),
        "apply_async": lambda: greet.apply_async(("here",), countdown=5),
        "signature": lambda: greet.s("here").apply_async(),
        "direct": lambda: greet("here"),
        "apply": lambda: greet.apply(("here",)).get(),
        "eager": lambda: greet.delay("here"),
    }[way]
    with pytest.raises(InvalidMessage, match="name: Field required"):
        call()


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("here", MARKER), {}),
        (("here",), {"name": MARKER}),
        ((), {"place": "here", "name": MARKER, "times": 1}),
    ],
)
def test_what_is_right_is_sent_as_it_was_given(
    greet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    sent = sent_by(lambda to: greet.apply_async(args, kwargs, connection=to))
    assert sent["payload"][:2] == [list(args), kwargs]


def test_a_sent_message_shows_no_value_but_those_that_may_be_shown(greet: Any) -> None:
    sent = sent_by(lambda to: greet.apply_async(("here", MARKER), connection=to))
    assert sent["headers"]["argsrepr"] == "()"
    assert sent["headers"]["kwargsrepr"] == "{place: 'here', name: hidden}"
    assert MARKER not in json.dumps(sent["headers"])


@pytest.mark.parametrize("way", ["apply_async", "signature"])
@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, [None, None]),
        ({"time_limit": 10}, [10, None]),
        ({"soft_time_limit": 5}, [None, 5]),
        ({"time_limit": 10, "soft_time_limit": 5}, [10, 5]),
        ({"time_limit": 30, "soft_time_limit": 25}, [30, 25]),
    ],
)
def test_a_message_names_the_time_limits_of_its_call_and_not_those_of_its_task(
    celery_app: Celery, greet: Any, asked: dict[str, int], sent: Any, way: str
) -> None:
    greet.time_limit, greet.soft_time_limit = 30, 25
    send = greet.apply_async if way == "apply_async" else greet.s("here", MARKER).apply_async
    args = ("here", MARKER) if way == "apply_async" else ()
    message = sent_by(lambda to: send(args, **asked, connection=to))
    assert message["headers"]["timelimit"] == sent


@pytest.mark.parametrize("way", ["delay", "apply_async", "signature", "direct", "apply", "eager"])
def test_every_way_of_sending_or_calling_refuses_an_unknown_field(
    celery_app: Celery, greet: Any, way: str
) -> None:
    celery_app.conf.task_always_eager = way == "eager"
    given = {"place": "here", "name": MARKER, "tims": 2}
    call = {
        "delay": lambda: greet.delay(**given),
        "apply_async": lambda: greet.apply_async(kwargs=given),
        "signature": lambda: celery_app.signature("greet", kwargs=given).apply_async(),
        "direct": lambda: greet(**given),
        "apply": lambda: greet.apply(kwargs=given).get(),
        "eager": lambda: greet.delay(**given),
    }[way]
    with pytest.raises(InvalidMessage, match=r"^greet: tims: .*did you mean times\?$"):
        call()


@pytest.mark.parametrize("way", ["s", "si", "signature", "subtask"])
def test_a_signature_refuses_an_unknown_field_and_not_a_missing_one(greet: Any, way: str) -> None:
    make = getattr(greet, way)
    arguments: Any = {"kwargs": {"name": "kim"}} if way in ("signature", "subtask") else {}
    assert make(**arguments or {"name": "kim"}).kwargs == {"name": "kim"}
    unknown: Any = {"kwargs": {"nam": "kim"}} if arguments else {"nam": "kim"}
    with pytest.raises(InvalidMessage, match="did you mean name"):
        make(**unknown)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("where", ["itself", "link", "chain", "group in a chain", "chord"])
def test_a_task_that_is_sent_by_its_name_refuses_an_unknown_field(where: str) -> None:
    wrong = app.signature("registerUser", kwargs={"mony": 5})
    first = app.signature("increment", kwargs={"input": 1})
    send = {
        "itself": lambda: app.send_task(
            "registerUser", ("s1", "u1", USER_INFO), {"mony": 5}, retry=False
        ),
        "link": lambda: app.send_task("increment", kwargs={"input": 1}, link=wrong, retry=False),
        "chain": lambda: chain(first, wrong, app=app).apply_async(retry=False),
        "group in a chain": lambda: chain(first, group(wrong, wrong, app=app), app=app).apply_async(
            retry=False
        ),
        "chord": lambda: app.send_task("increment", kwargs={"input": 1}, chord=wrong, retry=False),
    }[where]
    with pytest.raises(InvalidMessage, match=r"^registerUser: mony: .*did you mean money\?$"):
        send()


@pytest.mark.usefixtures("_environment")
def test_a_task_that_is_sent_by_its_name_is_checked_as_any_call() -> None:
    with pytest.raises(InvalidMessage, match="user_id: Field required"):
        app.send_task("registerUser", ("s1",), {"user_info": USER_INFO})


@pytest.mark.usefixtures("greet")
def test_a_task_that_is_sent_by_its_name_shows_no_personal_value(celery_app: Celery) -> None:
    sent = sent_by(lambda to: celery_app.send_task("greet", ("here", MARKER), connection=to))
    assert sent["payload"][0] == ["here", MARKER]
    assert MARKER not in json.dumps(sent["headers"])


def test_a_model_may_say_itself_what_becomes_of_unknown_fields(celery_app: Celery) -> None:
    @celery_app.task(shared=False, name="collect", model=Free)
    def collect(message: Free, provenance: Provenance) -> Any:
        return message.model_extra

    assert collect(name="kim", more=1) == {"more": 1}


def test_a_worker_takes_a_message_of_a_newer_producer_and_logs_an_unknown_field_once(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    newer = {"place": "here", "name": "kim", "tims": MARKER, "KimDoe": 1, f"{MARKER} Doe": 1}
    for _ in range(3):
        message, _ = run(**newer)
        assert message == Greeting(place="here", name="kim")
    reported = [r for r in caplog.records if getattr(r, "event", "") == "message.unknown_field"]
    assert [(r.task, r.reason) for r in reported] == [("greet", "tims"), ("greet", "…")]  # type: ignore[attr-defined]  # from `extra`
    assert MARKER not in caplog.text
    assert "KimDoe" not in caplog.text


def test_a_worker_ignores_an_unknown_field_whose_name_is_no_text(run: Any) -> None:
    message, _ = run(**{"place": "here", "name": "kim", "\ud800": 1, "tims": 2})
    assert message == Greeting(place="here", name="kim")


def test_a_worker_logs_only_so_many_names(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    given = {"place": "here", "name": "kim"} | {f"times{n}": 1 for n in range(200)}
    run(**given)
    assert len(caplog.records) == MOST_UNKNOWN


def test_what_a_task_sends_is_checked_where_it_arrives(greet: Any) -> None:
    # To raise here would fail the task before it, which has done its work.
    sent = sent_by(
        lambda to: greet.apply_async((), {"name": "kim"}, parent_id="id-0", connection=to)
    )
    assert sent["payload"][:2] == [[], {"name": "kim"}]


def test_a_task_without_a_model_is_an_ordinary_task(celery_app: Celery) -> None:
    @celery_app.task(shared=False, name="add")
    def add(a: int, b: int) -> int:
        return a + b

    sent = sent_by(lambda to: add.apply_async((1, MARKER), connection=to))
    assert add(1, 2) == 3
    assert sent["payload"][0] == [1, MARKER]
    assert MARKER not in json.dumps(sent["headers"])


# What is shown


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("s1", "u1", USER_INFO), {}),
        ((), {"stock_id": "s1", "user_id": "u1", "user_info": USER_INFO}),
        ((), {"stockId": "s1", "userId": "u1", "userInfo": USER_INFO}),
    ],
)
def test_ids_are_shown_and_user_info_is_hidden_in_either_spelling(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    shown = register_user.shown(args, kwargs)
    assert shown == ("()", "{stock_id: 's1', user_id: 'u1', user_info: hidden}")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {"name": MARKER}),
        ((), {"name": [MARKER], "place": [MARKER]}),
        ((), {"place": {"$gt": MARKER}}),
        ((), {"place": None, "times": [MARKER]}),
        ((), {MARKER: MARKER}),
        ((), {"Name": MARKER, "NAME": MARKER, "_name": MARKER, "": MARKER}),
        (({"name": MARKER}, [MARKER]), {}),
        (("here", MARKER, 1, MARKER), {}),
        (("here", MARKER), {"place": MARKER, "name": MARKER}),
        (("here",) * 9, {MARKER: MARKER}),
        # Where a number belongs, a word may be anything.
        ((), {"place": "here", "name": "kim", "times": MARKER}),
    ],
)
def test_no_value_is_shown_that_may_be_personal(
    greet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    # The worker asks for any arguments that came, before they are checked.
    assert MARKER not in "".join(greet.shown(args, kwargs))


def test_a_shown_value_is_cut(greet: Any) -> None:
    _, shown = greet.shown((), {"place": "x" * 10_000, "name": "kim"})
    assert len(shown) < 200


# In the worker


def verdict_on(task: Any) -> Any:
    """What the main process is told of the run that has just failed for good."""
    failure = SimpleNamespace(verdict=None)
    task.on_failure(None, "id-1", (), {}, failure)
    return failure.verdict


@pytest.fixture
def run(greet: Any) -> Iterator[Any]:
    """Runs the task as a pool's process does."""
    greet.push_request(
        id="id-1", retries=1, called_directly=False, is_eager=False, delivery=DELIVERY
    )
    yield greet
    greet.pop_request()


def test_a_task_is_told_where_its_message_came_from(run: Any) -> None:
    message, provenance = run(place="here", name="kim")
    assert message == Greeting(place="here", name="kim")
    assert provenance is DELIVERY


@pytest.mark.parametrize("name", ["self", "run", "args", "kwargs", "message", "provenance"])
def test_a_field_may_have_any_name(run: Any, name: str) -> None:
    # A field that is not known yet is ignored, also one that a method of the task has too.
    task = run.app.tasks["greet"]
    message, _ = task(**{"place": "here", "name": "kim", name: MARKER})
    assert message == Greeting(place="here", name="kim")


def test_wrong_arguments_are_dead_lettered_by_the_worker(run: Any) -> None:
    # `send_task` and plain JSON get here unchecked.
    with pytest.raises(InvalidMessage):
        run(place="here", name=[MARKER])
    verdict = verdict_on(run)
    assert verdict.error == "InvalidMessage"
    assert verdict.reason == "greet: name: Input should be a valid string"


@pytest.mark.parametrize(
    ("error", "raised", "when"),
    [
        (Conflict("another came first"), Conflict, None),
        (TransientError("away", retry_after=61), Retry, 61),
        (TransientError("away"), Retry, None),
        (ValueError(MARKER), Retry, None),
    ],
)
def test_the_error_of_the_domain_says_what_the_worker_does_and_when(
    celery_app: Celery, error: Exception, raised: type[Exception], when: float | None
) -> None:
    @celery_app.task(shared=False, name="fail", model=Greeting)
    def fail(message: Greeting, provenance: Provenance) -> None:
        raise error

    fail.push_request(retries=0, called_directly=False, is_eager=False, delivery=DELIVERY)
    with pytest.raises(raised) as ended:
        fail(place="here", name="kim")
    assert (verdict_on(fail) is None) == (raised is Retry)
    assert when is None or ended.value.when == when


# Without a queue


@pytest.mark.parametrize(("way", "id_"), [("direct", ""), ("apply", "id-7"), ("eager", "id-7")])
def test_without_a_queue_a_task_runs_at_the_caller_under_the_id_it_is_given(
    celery_app: Celery, greet: Any, way: str, id_: str
) -> None:
    celery_app.conf.task_always_eager = way == "eager"
    message, provenance = {
        "direct": lambda: greet("here", name="kim"),
        "apply": lambda: greet.apply(("here", "kim"), task_id=id_).get(),
        "eager": lambda: greet.apply_async(("here",), {"name": "kim"}, task_id=id_).get(),
    }[way]()
    assert message == Greeting(place="here", name="kim")
    assert (provenance.message_id, provenance.has_producer_id) == (id_, bool(id_))
    assert (provenance.source, provenance.deliveries) == (Source.CELERY, 1)
    assert timedelta() <= datetime.now(UTC) - provenance.enqueued_at < timedelta(minutes=1)


# Many messages as one job


def call(**kwargs: Any) -> Call:
    return Call([], kwargs, {"id": "id-1", "delivery": DELIVERY})


@pytest.fixture
def greet_many(celery_app: Celery) -> Any:
    """A task that tells whom it was called with."""

    def many(pairs: Any) -> list[str]:
        return [f"{message.name} by {provenance.source}" for message, provenance in pairs]

    @celery_app.task(shared=False, name="greet_many", model=Greeting, many=many)
    def greet_many(*_: Any) -> None: ...

    return greet_many


def test_the_work_for_many_gets_each_message_with_its_provenance(greet_many: Any) -> None:
    outcomes = greet_many.run_many([call(place="p", name="kim"), call(place="p", name="lee")])
    assert outcomes == ["kim by sns", "lee by sns"]


def test_a_message_that_its_model_refuses_keeps_no_other_back(greet_many: Any) -> None:
    first, bad, last = greet_many.run_many(
        [call(place="p", name="kim"), call(place="p"), call(place="p", name="lee")]
    )
    assert (first, last) == ("kim by sns", "lee by sns")
    assert isinstance(bad, InvalidMessage)
    assert "name: Field required" in str(bad)


def test_a_check_that_breaks_keeps_no_other_back(celery_app: Celery) -> None:
    class Picky(Greeting):
        @field_validator("name")
        @classmethod
        def known(cls, name: str) -> str:
            return {"kim": "kim", "lee": "lee"}[name]

    @celery_app.task(shared=False, name="picky", model=Picky, many=list)
    def picky(*_: Any) -> None: ...

    first, bad, last = picky.run_many([call(place="p", name=n) for n in ("kim", "eve", "lee")])
    assert (first[0].name, last[0].name) == ("kim", "lee")
    assert isinstance(bad, KeyError)


def test_work_that_gives_no_list_of_an_outcome_for_each_has_failed(celery_app: Celery) -> None:
    @celery_app.task(shared=False, name="odd", model=Greeting, many=lambda _: ["a", "b"])
    def odd(*_: Any) -> None: ...

    with pytest.raises(RuntimeError, match="odd: "):
        odd.run_many([call(place="p", name="kim")])


def test_there_is_no_work_where_every_message_is_refused(greet_many: Any) -> None:
    (bad,) = greet_many.run_many([call()])
    assert isinstance(bad, InvalidMessage)
