"""SQS's JSON protocol: what botocore writes and reads, for any message and any refusal."""

import json
from base64 import b64encode
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from sqs_broker.sqs import requests
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.requests import Outgoing, Request
from sqs_broker.sqs.wire import decode, encode, headers_of, refusal

URL = "https://sqs.test/1/jobs"
DATE = "Fri, 02 Jan 2026 03:04:05 GMT"

texts = st.text(max_size=20)
attributes = st.dictionaries(
    texts,
    st.builds(lambda text: {"DataType": "String", "StringValue": text}, texts)
    | st.builds(lambda data: {"DataType": "Binary", "BinaryValue": data}, st.binary(max_size=20))
    | st.builds(lambda text: {"DataType": "Binary", "BinaryValue": text}, texts),
    max_size=3,
)
outgoing = st.builds(
    Outgoing, texts, attributes, st.none() | st.integers(0, 900), st.none() | texts
)
calls = st.one_of(
    st.builds(requests.send, st.just(URL), outgoing),
    st.builds(requests.send_many, st.just(URL), st.lists(outgoing, max_size=3)),
    st.builds(requests.delete_many, st.just(URL), st.lists(texts, max_size=3)),
    st.builds(
        requests.change_many, st.just(URL), st.lists(st.tuples(texts, st.integers()), max_size=3)
    ),
    st.builds(requests.receive, st.just(URL), st.integers(1, 10), st.integers(0, 20)),
    st.builds(requests.attributes, st.just(URL), texts),
    st.just(requests.purge(URL)),
)


@cache
def model() -> Any:
    return botocore.session.get_session().get_service_model("sqs")


@given(calls)
def test_the_body_of_a_request_is_botocore_s(request: Request[Any]) -> None:
    serializer = create_serializer("json", include_validation=False)
    operation = model().operation_model(request.action)
    theirs = serializer.serialize_to_request(dict(request.parameters), operation)
    assert json.loads(encode(request.parameters)) == json.loads(theirs["body"])


# Answers

nullable = st.none() | texts
entries = st.lists(
    st.fixed_dictionaries(
        {"Id": st.sampled_from("0123"), "Code": texts, "SenderFault": st.booleans()},
        optional={"Message": nullable},
    ),
    max_size=3,
)
received_attributes = st.dictionaries(
    texts,
    st.fixed_dictionaries(
        {"DataType": texts},
        optional={
            "StringValue": nullable,
            "BinaryValue": st.none() | st.binary(max_size=9).map(lambda b: b64encode(b).decode()),
        },
    ),
    max_size=2,
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "MessageId": texts,
            "ReceiptHandle": texts,
            "Body": texts,
            "Attributes": st.dictionaries(
                st.sampled_from(["SentTimestamp", "ApproximateReceiveCount"]), texts
            ),
        },
        optional={"MessageAttributes": st.none() | received_attributes, "MD5OfBody": nullable},
    ),
    max_size=3,
)
answers = st.one_of(
    st.tuples(
        st.just("ReceiveMessage"), st.fixed_dictionaries({}, optional={"Messages": messages})
    ),
    st.tuples(
        st.sampled_from(["DeleteMessageBatch", "ChangeMessageVisibilityBatch"]),
        st.fixed_dictionaries({}, optional={"Failed": st.none() | entries}),
    ),
    st.tuples(
        st.just("GetQueueAttributes"),
        st.fixed_dictionaries(
            {},
            optional={
                "Attributes": st.none()
                | st.dictionaries(st.sampled_from(["VisibilityTimeout", "QueueArn"]), texts)
            },
        ),
    ),
)


@given(answers)
def test_the_content_of_an_answer_is_botocore_s(answer: tuple[str, dict[str, Any]]) -> None:
    action, content = answer
    body = json.dumps(content).encode()
    shape = model().operation_model(action).output_shape
    theirs = create_parser("json").parse({"status_code": 200, "headers": {}, "body": body}, shape)
    del theirs["ResponseMetadata"]
    assert decode(body) == theirs


@given(
    st.sampled_from([400, 403, 500, 503]),
    st.fixed_dictionaries(
        {},
        optional={
            "__type": st.sampled_from(
                [
                    "com.amazonaws.sqs#OverLimit",
                    "OverLimit",
                    "a#B:http://c",
                    "KMS.DisabledException",
                ]
            ),
            "message": texts,
            "Message": texts,
        },
    ).map(json.dumps)
    | st.sampled_from(["", "<html>", "{"]),
    st.none() | st.sampled_from(["AWS.SQS.Old;Sender", "Old;", ";Sender", "Old", "a;b;c", ""]),
)
def test_the_code_of_a_refusal_is_botocore_s(status: int, body: str, older: str | None) -> None:
    headers = {"date": DATE} | ({} if older is None else {"x-amzn-query-error": older})
    theirs = create_parser("json").parse(
        {"status_code": status, "headers": headers, "body": body.encode()}, None
    )["Error"]
    ours = refusal("SendMessage", status, headers, body.encode())
    assert ours.code == SqsError(theirs["Code"]).code
    assert ours.is_of_key == SqsError(theirs["Code"]).is_of_key
    assert str(ours).endswith(theirs["Message"])
    assert ours.at is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["Messages", "Failed", "Attributes", "MessageAttributes", "BinaryValue", "a"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    ),
    st.integers(0, 60),
)
def test_any_other_answer_is_content_or_unreadable(content: Any, cut: int) -> None:
    for body in (json.dumps(content), json.dumps(content)[:cut]):
        assert outcome(body.encode()) in (dict, "UnreadableAnswer")


def outcome(body: bytes) -> object:
    try:
        return type(decode(body))
    except Unreached as error:
        return error.code


def test_an_answer_without_a_body_has_no_content() -> None:
    assert decode(b"") == {}


@pytest.mark.parametrize("body", [b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreached, match="cannot be read"):
        decode(body)


# Headers


def test_the_headers_are_those_of_the_last_answer() -> None:
    of_a_proxy = [b"HTTP/1.1 200 Connection established\r\n", b"Via: proxy\r\n", b"\r\n"]
    lines = [*of_a_proxy, b"HTTP/1.1 200 OK\r\n", b"Date: a: b\r\n", b"\r\n"]
    assert headers_of(lines) == ({"date": "a: b"}, True)


def test_headers_without_an_end_are_not_complete() -> None:
    assert headers_of([b"HTTP/1.1 200 OK\r\n", b"Date: a\r\n"])[1] is False
    assert headers_of([])[1] is False
