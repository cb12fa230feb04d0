"""What bad input gets: the dead-letter queue, at once, whole and with the reason; and the messages
beside it are not disturbed.

All of it goes to one real worker in one go, a good registration between any two bad messages.
"""

import base64
import json
import pickle
import tempfile
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.worker import SETTLE_SECONDS, Service

#: Planted wherever a user's own words can be: it may appear in no log and on no dead letter.
MARKER = "Zqx7MarkerOfAUser"

KIM = {"nickname": MARKER, "gender": "F", "introduction": MARKER}
REGISTRATION = {"stockId": "bad", "userId": "u1", "userInfo": KIM}
ARGUMENTS = {"stock_id": "bad", "user_id": "u1", "user_info": KIM}

#: Made by whoever unpickles it.
EVIDENCE = Path(tempfile.gettempdir()) / f"unpickled-{uuid.uuid4().hex}"


class Payload:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (EVIDENCE,)


def plain(**changed: Any) -> str:
    """A good plain JSON message but for this."""
    return json.dumps({"id": "bad", "action": "registerUser", "data": REGISTRATION} | changed)


def data(**changed: Any) -> str:
    """A good plain JSON message but for this in its data."""
    return plain(data=REGISTRATION | changed)


def without(name: str) -> str:
    """A good plain JSON message but for this field."""
    return plain(data={key: value for key, value in REGISTRATION.items() if key != name})


def envelope(**changed: Any) -> str:
    """A good envelope of Celery but for this; None takes a key away."""
    whole = {
        "body": body(),
        "headers": headers(),
        "properties": {"body_encoding": None, "delivery_info": {"routing_key": "sdc-sqs"}},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
    whole |= {name.replace("_", "-"): value for name, value in changed.items()}
    return json.dumps({name: value for name, value in whole.items() if value is not None})


def headers(**changed: Any) -> dict[str, Any]:
    return {"lang": "py", "task": "registerUser", "id": "bad"} | changed


def header(**changed: Any) -> str:
    """A good envelope of Celery but for this header."""
    return envelope(headers=headers(**changed))


def body(args: Any = (), kwargs: Any = ARGUMENTS, embed: Any = None) -> str:
    return json.dumps([args, kwargs, embed])


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def nested(depth: int) -> Any:
    """An array in an array, so many times."""
    return json.loads("[" * depth + "]" * depth)


def notification(text: str) -> str:
    """A notification of SNS with this text."""
    return json.dumps({"Type": "Notification", "TopicArn": "arn:aws:sns:a:1:t", "Message": text})


#: A signature of a task that is here.
CALLBACK = {"task": "increment", "args": [1], "kwargs": {}, "options": {}}

#: Sends a message for each character, if Celery calls it.
BOMB = {
    "task": "celery.chunks",
    "args": [],
    "kwargs": {"task": CALLBACK, "it": "a" * 1_000, "n": 1},
    "options": {},
}

BAD: dict[str, str] = {
    "text": f"hello {MARKER}",
    "half a JSON object": plain()[:-1],
    "two JSON objects": plain() + plain(),
    "JSON of a depth that cannot be parsed": "[" * 50_000,
    "a number of a length that cannot be parsed": "1" * 10_000,
    # Some of these stop a worker that hands them on: pickling them is recursive too.
    "data nested 100 deep": data(more=nested(100)),
    "data nested 500 deep": data(more=nested(500)),
    "data nested 700 deep": data(more=nested(700)),
    "data nested 900 deep": data(more=nested(900)),
    "a header nested 700 deep": header(more=nested(700)),
    "a property nested 700 deep": envelope(properties={"more": nested(700)}),
    "an argument nested 700 deep": envelope(body=body(kwargs=ARGUMENTS | {"more": nested(700)})),
    "an embed nested 700 deep": envelope(
        body=body(embed={"chord": {"task": "registerUser", "options": {"more": nested(700)}}})
    ),
    "a JSON array": json.dumps([MARKER]),
    "a JSON string": json.dumps(MARKER),
    "a JSON number": "5",
    "JSON null": "null",
    "an empty JSON object": "{}",
    "properties that are text": json.dumps({"properties": MARKER}),
    "properties that are empty": json.dumps({"properties": {}}),
    "GeoJSON": json.dumps(
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [125.6, 10.1]},
            "properties": {"name": MARKER},
        }
    ),
    "plain JSON with properties": plain(properties={"nickname": MARKER}),
    # The envelopes that stop a stock worker, and those that fail later in it.
    "headers that are a list": envelope(headers=[MARKER]),
    "headers that are text": envelope(headers=MARKER),
    "no headers": envelope(headers=None),
    "a task that is a list": header(task=["registerUser"]),
    "a task that is null": header(task=None),
    "a task that is an object": header(task={"$gt": ""}),
    "an id that is a list": header(id=["bad"]),
    "an id that is a number": header(id=5),
    "an id of 10,000 characters": header(id="i" * 10_000),
    "no id": envelope(headers={"task": "registerUser"}),
    "a body that is a number": envelope(body="5"),
    "a body that is null": envelope(body="null"),
    "a body that is an object": envelope(body=json.dumps(ARGUMENTS)),
    "a body of two": envelope(body=json.dumps([[], ARGUMENTS])),
    "a body of four": envelope(body=json.dumps([[], ARGUMENTS, {}, MARKER])),
    "a body that is text": envelope(body=MARKER),
    "a body that is not in text": envelope(body=[[], ARGUMENTS, {}]),
    "no body": envelope(body=None),
    "args that are an object": envelope(body=body(args={"0": MARKER})),
    "args that are text": envelope(body=body(args=MARKER)),
    "kwargs that are a list": envelope(body=body(kwargs=[MARKER])),
    "an embed that is a list": envelope(body=body(embed=[MARKER])),
    "an embed that is text": envelope(body=body(embed=MARKER)),
    "a callback that is text": envelope(body=body(embed={"callbacks": [MARKER]})),
    "callbacks that are an object": envelope(body=body(embed={"callbacks": {"a": MARKER}})),
    "a callback without a task": envelope(body=body(embed={"callbacks": [{"a": MARKER}]})),
    "a chain that is text": envelope(body=body(embed={"chain": MARKER})),
    "a link of a chain without a task": envelope(body=body(embed={"chain": [{"a": MARKER}]})),
    "a chord that is a list": envelope(body=body(embed={"chord": [MARKER]})),
    "a chord without a task": envelope(body=body(embed={"chord": {"a": MARKER}})),
    "an errback that is a number": envelope(body=body(embed={"errbacks": [5]})),
    "no content type": envelope(content_type=None),
    "a content type that is a list": envelope(content_type=["application/json"]),
    "a time limit that is a number": header(timelimit=5),
    "a time limit of one": header(timelimit=[5]),
    "a time limit of text": header(timelimit=["a", "b"]),
    "stamped headers that are text": header(stamped_headers="stamp"),
    "stamped headers that are a number": header(stamped_headers=5),
    "stamps that are a list": header(stamped_headers=["stamp"], stamps=[5]),
    "a time limit that is negative": header(timelimit=[-1, -1]),
    "a time limit that is not finite": header(timelimit=[float("inf"), float("nan")]),
    "an eta that is a number": header(eta=5),
    "an eta that is no time": header(eta="tomorrow"),
    "an expiry that is no time": header(expires="tomorrow"),
    "a group index that is text": header(group_index="first"),
    "a group that is a list": header(group=["g"]),
    "a parent that is a number": header(parent_id=5),
    "a shadow that is an object": header(shadow={"a": "b"}),
    "a nesting that is text": header(replaced_task_nesting="deep"),
    "an embed with a key that is not Celery's": envelope(body=body(embed={"is_eager": True})),
    "half a character in an id": header(id="\ud800"),
    "a compressed body": header(compression="application/x-gzip"),
    "YAML": envelope(content_type="application/x-yaml", body=f"[[], {{a: {MARKER}}}, {{}}]"),
    "pickle": envelope(
        content_type="application/x-python-serialize",
        content_encoding="binary",
        properties={"body_encoding": "base64"},
        body=in_base64(pickle.dumps(Payload())),
    ),
    "pickle that says it is JSON": envelope(
        properties={"body_encoding": "base64"}, body=in_base64(pickle.dumps(Payload()))
    ),
    "pickle alone": in_base64(pickle.dumps(Payload())),
    "base64 of what is not UTF-8": in_base64(MARKER.encode("utf-16")),
    "base64 of text": in_base64(MARKER.encode()),
    "four layers of base64": in_base64(
        in_base64(in_base64(in_base64(plain().encode()).encode()).encode()).encode()
    ),
    # What no task can be made of.
    "a task of Celery's own": plain(
        action="celery.starmap", data={"task": {"task": "registerUser"}, "it": [[MARKER]]}
    ),
    "another task of Celery's own": plain(
        type="celery.chain", action=None, data={"tasks": [], "nickname": MARKER}
    ),
    "a task of Celery's own in an envelope": envelope(
        headers=headers(task="celery.chunks"), body=body(kwargs=BOMB["kwargs"])
    ),
    "a callback that sends a message for each character": envelope(
        body=body(embed={"callbacks": [BOMB]})
    ),
    "a callback to a task that is here": envelope(body=body(embed={"chain": [CALLBACK]})),
    "an errback": envelope(body=body(embed={"errbacks": [CALLBACK]})),
    "a callback in a notification of SNS": notification(
        envelope(body=body(embed={"callbacks": [BOMB]}))
    ),
    "a task of Celery's own in a notification of SNS": notification(
        envelope(headers=headers(task="celery.backend_cleanup"), body=body(kwargs={}))
    ),
    "neither action nor type": plain(action=None),
    "an action that is a list": plain(action=["registerUser"]),
    "an id of plain JSON that is a number": plain(id=5),
    "an id of plain JSON that is an object": plain(id={"$gt": ""}),
    "data that are text": plain(data=MARKER),
    "data that are a list": plain(data=[MARKER]),
    "no data": json.dumps({"id": "bad", "action": "registerUser", "nickname": MARKER}),
    "a notification of SNS with bad text": json.dumps(
        {"Type": "Notification", "TopicArn": "arn:aws:sns:a:1:t", "Message": MARKER}
    ),
    "a notification of SNS with bad data": json.dumps(
        {"Type": "Notification", "TopicArn": "arn:aws:sns:a:1:t", "Message": data(userId=5)}
    ),
    "a notification of SNS without a message": json.dumps(
        {"Type": "Notification", "TopicArn": "arn:aws:sns:a:1:t", "Message": None}
    ),
    # What the model refuses.
    "no stock": without("stockId"),
    "no user": without("userId"),
    "no user info": without("userInfo"),
    "no nickname": data(userInfo={"introduction": MARKER}),
    "an empty nickname": data(userInfo={"nickname": "", "introduction": MARKER}),
    "a stock that is a number": data(stockId=5),
    "an empty stock": data(stockId=""),
    "a user that is null": data(userId=None),
    "a user with a control character": data(userId="u\n1"),
    "user info that is text": data(userInfo=MARKER),
    "a negative sum": data(money=-1),
    "a sum that is text": data(money="5"),
    "a sum that is true": data(money=True),
    "a sum beyond what MongoDB holds": data(money=2**80),
    "a count that is a fraction": data(loanCount=1.5),
    "half a character": data(userInfo=KIM | {"nickname": f"\ud800{MARKER}"}),
    "half a character in a field that is not ours": data(more="\ud800", userId=5),
    "a field in both spellings": data(stock_id="bad"),
    "an operator for a stock": data(stockId={"$gt": ""}),
    "an operator for a user": data(userId={"$ne": MARKER}),
    "an operator for a nickname": data(userInfo=KIM | {"nickname": {"$gt": ""}}),
    "a nickname of 10,000 characters": data(userInfo=KIM | {"nickname": MARKER + "k" * 10_000}),
    "a field given twice": envelope(body=body(args=["bad"], kwargs=ARGUMENTS)),
    "too many arguments": envelope(body=body(args=[MARKER] * 20, kwargs={})),
    "a wrong field of an envelope": envelope(body=body(kwargs=ARGUMENTS | {"user_id": [MARKER]})),
    "an input that is not a number": plain(action="increment", data={"input": MARKER}),
    "an input that is true": plain(action="increment", data={"input": True}),
    "an input that is not finite": plain(action="increment", data={"input": float("nan")}),
    "an increment without an id": json.dumps({"action": "increment", "data": {"input": 1}}),
    "250 KB of what is no JSON": MARKER + "x" * 250_000,
    "250 KB of a bad registration": data(userInfo=KIM | {"introduction": MARKER + "x" * 250_000}),
}

#: Stands for the name of the message, which is its stock.
STOCK = "{stock}"

#: What is odd and no fault: each of these is registered. Their ids are those of bad messages.
GOOD: dict[str, str] = {
    "fields that nobody knows": data(stockId=STOCK, more={"deep": [MARKER]}),
    "250 KB of which most is unknown": data(stockId=STOCK, more=MARKER + "x" * 250_000),
    "an operator in the words of a user": data(stockId=STOCK, userInfo=KIM | {"gender": "$gt"}),
    "every script": data(stockId=STOCK, userInfo=KIM | {"nickname": "김 \u0000 🦊 é"}),
    "retries that were claimed": envelope(
        headers=headers(retries=99),
        body=body(kwargs=ARGUMENTS | {"stock_id": STOCK}),
        properties={"redelivered": True},
    ),
    "fields that Python has a use for": data(
        **dict.fromkeys(("self", "run", "args", "kwargs", "message", "task", "session"), MARKER),
        stockId=STOCK,
    ),
    "headers that Celery keeps for itself": envelope(
        headers=headers(args=5, kwargs=5, callbacks=5, errbacks=5, chain=5, chord=5, children=5),
        body=body(kwargs=ARGUMENTS | {"stock_id": STOCK}),
    ),
    "data nested 50 deep": data(stockId=STOCK, more=nested(50)),
    "an expiry without a time zone": envelope(
        headers=headers(expires="2999-12-31T23:59:59"),
        body=body(kwargs=ARGUMENTS | {"stock_id": STOCK}),
    ),
    "time limits longer than the task's": envelope(
        headers=headers(timelimit=[1e9, 1e9]), body=body(kwargs=ARGUMENTS | {"stock_id": STOCK})
    ),
    "a time limit of a nanosecond": envelope(
        headers=headers(timelimit=[1e-9, 1e-9]), body=body(kwargs=ARGUMENTS | {"stock_id": STOCK})
    ),
    "an envelope in a notification of SNS": notification(
        envelope(body=body(kwargs=ARGUMENTS | {"stock_id": STOCK}))
    ),
    "space around it": "\n " + data(stockId=STOCK) + " \n",
}


@pytest.fixture(scope="module")
def sent(service: Service) -> Mapping[str, str]:
    """All messages are sent and settled; SQS's id of each bad one."""
    odd = [text.replace(STOCK, name) for name, text in GOOD.items()]
    between = [data(stockId="between", userId=f"u{number}") for number in range(len(BAD))]
    bad = [(text, attributes(name)) for name, text in BAD.items()]
    # Bad ones, good ones and odd ones by turns.
    turns = zip_longest(bad, [(text, {}) for text in between], [(text, {}) for text in odd])
    messages: list[tuple[str, dict[str, Any]]]
    messages = [each for turn in turns for each in turn if each is not None]
    ids = service.send_many(messages)
    service.settle()
    # Only the bad ones have attributes.
    return dict(
        zip(BAD, (id_ for id_, (_, own) in zip(ids, messages, strict=True) if own), strict=True)
    )


@pytest.fixture(scope="module")
def dead_letters(service: Service, sent: Mapping[str, str]) -> Mapping[str, list[dict[str, Any]]]:
    """The dead letters of each bad message, by its name."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in BAD}
    for letter in service.queues.dead_letters():
        found[letter["MessageAttributes"]["name"]["StringValue"]].append(letter)
    return found


@pytest.mark.parametrize("name", BAD)
@pytest.mark.contract
def test_bad_input_is_dead_lettered_once_and_whole_with_its_reason(
    service: Service,
    sent: Mapping[str, str],
    dead_letters: Mapping[str, list[dict[str, Any]]],
    name: str,
) -> None:
    [letter] = dead_letters[name]
    kept = letter["MessageAttributes"]
    text = kept.pop("dead-letter")["StringValue"]
    note = json.loads(text)

    assert letter["Body"] == BAD[name]
    assert kept == attributes(name)
    assert set(note) == {
        *("reason", "error", "task", "message_id", "deliveries", "source_queue", "at"),
    }
    assert note["reason"]
    assert note["error"]
    # At once: it was not tried a second time.
    assert (note["deliveries"], note["source_queue"]) == (1, service.queues.name)
    assert note["message_id"] in {sent[name], "bad"}
    assert datetime.fromisoformat(note["at"]) <= datetime.now(UTC)
    assert MARKER not in text


@pytest.mark.usefixtures("sent")
@pytest.mark.parametrize("name", GOOD)
@pytest.mark.contract
def test_odd_input_that_is_no_fault_is_registered(service: Service, name: str) -> None:
    assert service.user(name)["registration"]["deliveries"] == 1


@pytest.mark.usefixtures("sent")
@pytest.mark.contract
def test_every_good_message_between_bad_ones_is_registered(service: Service) -> None:
    users = service.database["users"].find({"stock_id": "between"})

    assert {user["user_id"] for user in users} == {f"u{number}" for number in range(len(BAD))}


@pytest.mark.usefixtures("sent")
@pytest.mark.contract
def test_no_user_is_made_of_bad_input(service: Service) -> None:
    stocks = service.database["users"].distinct("stock_id")

    assert set(stocks) <= {"between", "expired", *GOOD}


@pytest.mark.usefixtures("sent")
@pytest.mark.contract
def test_nothing_from_the_wire_is_unpickled() -> None:
    assert not EVIDENCE.exists()


@pytest.mark.contract
def test_nothing_that_cannot_succeed_is_delivered_again(
    service: Service, sent: Mapping[str, str]
) -> None:
    lines = service.worker.log_lines("message.dead-letter")

    assert sorted(line["sqs_message_id"] for line in lines) == sorted(sent.values())
    assert service.worker.log_lines("message.retry") == []
    assert service.queues.is_empty()


@pytest.mark.usefixtures("sent")
@pytest.mark.contract
def test_what_a_user_typed_is_in_no_log_line(service: Service) -> None:
    assert MARKER not in service.worker.log_text()
    assert in_base64(MARKER.encode())[:16] not in service.worker.log_text()


@pytest.mark.usefixtures("sent")
@pytest.mark.contract
def test_the_worker_lives_on_without_a_traceback(service: Service) -> None:
    assert service.worker.is_running
    assert "Traceback" not in service.worker.log_text()
    # A task that refuses its arguments has failed, as any task that fails.
    failed = [line for line in service.worker.log_lines() if "stack" in line]
    assert {line["event"] for line in failed} == {"task.failed"}
    assert {line["error"] for line in failed} == {"InvalidMessage", "PermanentError"}


@pytest.mark.contract
def test_a_message_that_has_expired_is_done_and_its_id_can_be_used_again(service: Service) -> None:
    past = headers(id="used twice", expires="2020-01-01T00:00:00+00:00")
    kwargs = ARGUMENTS | {"stock_id": "expired", "user_id": "too late"}

    service.send(envelope(headers=past, body=body(kwargs=kwargs)))
    service.settle()
    service.send(plain(id="used twice", data=REGISTRATION | {"stockId": "expired"}))
    service.settle()

    users = service.database["users"].find({"stock_id": "expired"})
    assert [user["user_id"] for user in users] == ["u1"]
    assert service.dead_letters("expired") == []


@pytest.mark.contract
def test_with_ten_attributes_the_last_joins_the_reason(service: Service) -> None:
    ten = {f"a{number}": text_attribute(f"v{number}") for number in range(9)}
    ten["binary"] = {"DataType": "Binary", "BinaryValue": bytes(range(256))}
    body = f"ten attributes {uuid.uuid4()}"

    service.send(body, ten)
    service.settle()

    [letter] = service.dead_letters(body)
    kept = letter["MessageAttributes"]
    displaced = json.loads(kept.pop("dead-letter")["StringValue"])["displaced"]
    name = displaced.pop("name")
    if "base64" in displaced:
        displaced["BinaryValue"] = base64.b64decode(displaced.pop("base64"))
    assert kept | {name: displaced} == ten


def attributes(name: str) -> dict[str, Any]:
    """Attributes of each type, as a producer adds them; one names the case."""
    return {
        "name": text_attribute(name),
        "trace": {"DataType": "Binary", "BinaryValue": b"\x00\xff\x80"},
        "size": {"DataType": "Number.int", "StringValue": "42"},
    }


def text_attribute(text: str) -> dict[str, Any]:
    return {"DataType": "String", "StringValue": text}


@pytest.mark.contract
def test_a_message_of_an_unknown_task_is_released_for_a_worker_that_may_have_it(
    service: Service,
) -> None:
    # The last test here: these messages stay in the queue.
    ids = {service.send(text) for text in (plain(action="registerUsr"), header(task="registerUsr"))}

    def released() -> set[str]:
        lines = service.worker.log_lines("message.released")
        return {line["sqs_message_id"] for line in lines if line["delay"] == 5}

    service.worker.wait_for(lambda: released() == ids, SETTLE_SECONDS, "the releases")
    (line,) = service.worker.log_lines("task.unknown")
    assert line["task"] == "registerUsr"
