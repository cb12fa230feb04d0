"""The HTTP API as a Lambda function, in AWS's runtime client, with a real queue and MongoDB."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.acceptance.function import Answer, Sandbox, sandbox
from tests.services import Queues, wait_until
from tests.unit.api_service import API_KEYS, KEYS
from tests.unit.test_gateway import event

ROOT = Path(__file__).parents[2]

USER = {"stockId": "s1", "userId": "u1", "userInfo": {"nickname": "Kim-1f9c"}}


@pytest.fixture
def api(tmp_path: Path, environment: dict[str, str]) -> Iterator[Sandbox]:
    given = environment | {"API_KEYS": API_KEYS}
    with sandbox(tmp_path, given, root=ROOT, handler="app.api_handler.handler") as made:
        made.wait_until_ready()
        yield made


def call(
    api: Sandbox, method: str, path: str, content: Any = None, *, key: str = "all", query: str = ""
) -> tuple[int, Any]:
    """The status and the body of an answer."""
    headers = {"x-api-key": KEYS[key], "content-type": "application/json"}
    body = "" if content is None else json.dumps(content)
    answer = api.invoke(event(method, path, body=body, rawQueryString=query, headers=headers))
    return parsed(answer)


def parsed(answer: Answer) -> tuple[int, Any]:
    assert answer.kind == "response", answer.content
    return answer.content["statusCode"], json.loads(answer.content["body"])


def outcomes(mongo_client: MongoClient[Any], mongo_uri: str) -> list[Mapping[str, Any]]:
    database = mongo_uri.rsplit("/", 1)[1].split("?")[0]
    return list(mongo_client[database].outcomes.find())


def test_a_request_is_a_message_and_its_state_is_stored_before_the_function_returns(
    api: Sandbox, queues: Queues, mongo_client: MongoClient[Any], mongo_uri: str
) -> None:
    status, content = call(api, "POST", "/registrations", USER, key="register")
    # From now on nothing runs in the sandbox.
    api.freeze()
    assert status == 202
    assert queues.counts() == (1, 0, 0)
    (stored,) = outcomes(mongo_client, mongo_uri)
    assert stored["_id"] == content["id"]
    api.thaw()
    status, state = call(api, "GET", f"/registrations/{content['id']}")
    assert (status, state["state"]) == (200, "pending")


def test_an_answer_is_held_for_at_most_25_seconds(api: Sandbox) -> None:
    status, problem = call(api, "GET", "/registrations/x", query="wait=26")
    assert (status, problem["errors"][0]["parameter"]) == (400, "wait")
    _, document = call(api, "GET", "/openapi.json")
    (wait,) = [
        each
        for each in document["paths"]["/registrations/{id}"]["get"]["parameters"]
        if each["name"] == "wait"
    ]
    assert wait["schema"]["maximum"] == 25


def test_the_operations_of_the_api_work_one_after_the_other(api: Sandbox, queues: Queues) -> None:
    assert call(api, "GET", "/healthz")[0] == 200
    assert call(api, "GET", "/readyz")[1]["status"] == "ready"
    assert call(api, "POST", "/produce", {"input": 1})[0] == 202
    assert call(api, "GET", "/count")[1] == {"count": 0}
    assert call(api, "GET", "/queues", key="operate")[1]["queues"][0]["visible"] == 1
    assert call(api, "GET", "/queues", key="register")[0] == 403
    assert call(api, "GET", "/nothing")[0] == 404
    assert "Kim-1f9c" not in api.log_text()


def test_a_request_that_cannot_end_in_time_is_answered_before_lambda_ends_it(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    given = environment | {"API_KEYS": API_KEYS}
    with sandbox(tmp_path, given, root=ROOT, handler="app.api_handler.handler", timeout=5) as short:
        short.wait_until_ready()
        _, content = call(short, "POST", "/registrations", USER)
        status, _ = call(short, "GET", f"/registrations/{content['id']}", query="wait=20")
        assert status == 503
        assert call(short, "GET", "/healthz")[0] == 200


def test_without_keys_the_api_does_not_start(tmp_path: Path, environment: dict[str, str]) -> None:
    with sandbox(tmp_path, environment, root=ROOT, handler="app.api_handler.handler") as open_:
        wait_until(lambda: "API_KEYS_SECRET_ARN" in open_.log_text(), 30, "the refusal")


def test_what_is_no_request_fails_the_invocation_and_not_the_sandbox(api: Sandbox) -> None:
    assert api.invoke({"Records": []}).kind == "error"
    assert call(api, "GET", "/healthz")[0] == 200
