"""Requests of API Gateway's HTTP API, in its payload format 2.0, for an ASGI application."""

import asyncio
import base64
import json
from typing import Any

import pytest

from app.api.gateway import MalformedRequest, Request
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import API_KEYS, KEYS, Running, running

USER = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "kim"}}


def event(method: str = "GET", path: str = "/healthz", **changes: Any) -> dict[str, Any]:
    """As https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html
    shows it."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"header1": "value1", "header2": "value1,value2"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api-id",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "agent",
            },
            "requestId": "id",
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1583348638390,
        },
        "isBase64Encoded": False,
    } | changes


def answers(fake: FakeSqs, *events: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The responses of the API to these requests, one after the other."""

    async def run() -> list[dict[str, Any]]:
        async with running(fake, **options) as made:
            return [await answer(made, each) for each in events]

    return asyncio.run(run())


async def answer(made: Running, given: dict[str, Any]) -> dict[str, Any]:
    request = Request(given)
    await request.run(made.app)
    return request.response()


def post(content: str, **changes: Any) -> dict[str, Any]:
    headers = {"content-type": "application/json", "content-length": "7"}
    return event("POST", "/registrations", body=content, headers=headers, **changes)


def test_a_request_becomes_a_message_and_its_answer_a_response(fake: FakeSqs) -> None:
    (found,) = answers(fake, post(json.dumps(USER)))
    content = json.loads(found["body"])
    assert found["statusCode"] == 202
    assert found["isBase64Encoded"] is False
    assert found["headers"]["content-type"] == "application/json"
    assert found["headers"]["location"] == f"/registrations/{content['id']}"
    (body,) = fake.bodies(fake.options().queue("jobs").url)
    assert json.loads(body)["id"] == content["id"]


def test_one_request_is_one_call_to_sqs(fake: FakeSqs) -> None:
    fake.forget_calls()
    answers(fake, post(json.dumps(USER)))
    (call,) = fake.calls
    assert call.action == "SendMessageBatch"
    assert len(call.parameters["Entries"]) == 1


def test_a_body_in_base64_is_decoded(fake: FakeSqs) -> None:
    content = base64.b64encode(json.dumps(USER).encode()).decode()
    (found,) = answers(fake, post(content, isBase64Encoded=True))
    assert found["statusCode"] == 202


def test_a_request_without_a_body_and_headers_is_answered(fake: FakeSqs) -> None:
    given = event()
    del given["headers"]
    (found,) = answers(fake, given)
    assert (found["statusCode"], json.loads(found["body"])) == (200, {"status": "ok"})


def test_the_query_and_the_path_reach_the_routes(fake: FakeSqs) -> None:
    key = {"x-api-key": KEYS["read"]}
    users, user = answers(
        fake,
        event(path="/users", rawQueryString="stockId=s1&limit=0", headers=key),
        event(path="/users/s%201/u%2F1", headers=key),
        keys=API_KEYS,
    )
    assert json.loads(users["body"])["errors"][0]["parameter"] == "limit"
    assert user["statusCode"] == 404
    assert json.loads(user["body"])["detail"] == "There is no such user."


def test_a_key_is_needed_as_on_a_server(fake: FakeSqs) -> None:
    (found,) = answers(fake, post(json.dumps(USER)), keys=API_KEYS)
    assert found["statusCode"] == 401
    assert fake.bodies(fake.options().queue("jobs").url) == []


def test_what_is_no_text_is_answered_in_base64(fake: FakeSqs) -> None:
    page, icon = answers(
        fake, event(path="/docs"), event(path="/docs/static/favicon.png", headers={})
    )
    assert page["isBase64Encoded"] is False
    assert "swagger-ui" in page["body"]
    assert icon["isBase64Encoded"] is True
    assert base64.b64decode(icon["body"]).startswith(b"\x89PNG")


def test_of_two_answers_the_second_is_the_response() -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        for status, body in ((200, b"first"), (503, b"second")):
            headers = [(b"x-a", b"1"), (b"x-a", b"2")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    request = Request(event())
    asyncio.run(request.run(app))
    assert request.response() == {
        "statusCode": 503,
        "headers": {"x-a": "1,2"},
        "body": "second",
        "isBase64Encoded": False,
    }


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"Records": []},
        # Format 1.0.
        {"version": "1.0", "httpMethod": "GET", "path": "/", "requestContext": {}},
        event(body="no base64", isBase64Encoded=True),
        event(headers=[]),
    ],
)
def test_what_is_no_request_is_refused(given: Any) -> None:
    with pytest.raises(MalformedRequest):
        Request(given)
