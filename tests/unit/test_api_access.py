"""Who may do what, what is refused before the body is read, and what every answer has."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message
from starlette.types import Scope as AsgiScope

from app.api import bodies
from app.api.front import IS_CLOSED, Front
from app.api.keys import Rates, Scope, new_key, read_keys
from app.errors import SettingsError
from sqs_broker.testing import Clock, FakeSqs
from tests.unit.api_service import API_KEYS, KEYS, Running, entry
from tests.unit.asgi import Client
from tests.unit.test_api_sending import USER, api, kind

ID = "0" * 40

#: Each operation with a key, and the scopes of which it needs one.
NEEDS = {
    ("POST", "/registrations"): {"register"},
    ("POST", "/registrations/batch"): {"register"},
    ("POST", "/produce"): {"register"},
    ("GET", f"/registrations/{ID}"): {"register", "read"},
    ("GET", "/users?stockId=s1"): {"read"},
    ("GET", "/users/s1/u1"): {"read"},
    ("GET", "/queues"): {"operate"},
    ("GET", "/count"): {"register", "read", "operate"},
}


# Keys


@pytest.mark.parametrize(("method", "target"), NEEDS)
def test_without_a_valid_key_an_operation_is_refused(
    fake: FakeSqs, method: str, target: str
) -> None:
    async def test(made: Running) -> None:
        for client in (made.client, Client(made.app, {"X-API-Key": "k-1x"}),
                       Client(made.app, {"X-API-Key": "na\xefve"})):  # fmt: skip
            answer = await client.request(method, target)
            assert (answer.status, kind(answer)) == (401, "unknown-key")
            assert "www-authenticate" in answer.headers

    api(fake, test, keys=API_KEYS)


def test_of_a_key_that_is_given_twice_the_first_counts(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        good, bad = ("X-API-Key", KEYS["operate"]), ("X-API-Key", "wrong")
        for given, status in (([good, bad], 200), ([bad, good], 401)):
            answer = await made.client.request("GET", "/queues", headers=given)
            assert answer.status == status

    api(fake, test, keys=API_KEYS)


@pytest.mark.parametrize(("method", "target"), NEEDS)
@pytest.mark.parametrize("scope", list(Scope))
def test_an_operation_needs_its_scope(
    fake: FakeSqs, method: str, target: str, scope: Scope
) -> None:
    async def test(made: Running) -> None:
        answer = await made.with_key(scope).request(method, target)
        if scope in NEEDS[method, target]:
            assert answer.status not in (401, 403)
        else:
            assert (answer.status, kind(answer)) == (403, "forbidden")

    api(fake, test, keys=API_KEYS)


def test_health_and_documentation_need_no_key(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        for target in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await made.client.get(target)).status == 200

    api(fake, test, keys=API_KEYS)


def test_a_key_without_scopes_may_register(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        client = Client(made.app, {"X-API-Key": "k"})
        assert (await client.post("/registrations", USER)).status == 202
        assert (await client.get("/queues")).status == 403

    api(fake, test, keys=f"app:{sha256(b'k').hexdigest()}")


def test_two_keys_of_one_name_make_the_same_ids(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        ids = set()
        for key in ("old", "new"):
            answer = await Client(made.app, {"X-API-Key": key}).post("/registrations", USER)
            ids.add(answer.json()["id"])
        assert len(ids) == 1

    keys = ",".join(entry("app", key, "register") for key in ("old", "new"))
    api(fake, test, keys=keys)


def test_a_new_key_is_accepted_with_its_entry() -> None:
    key, made = new_key("app", [Scope.READ, Scope.OPERATE])
    client = read_keys(made).client(key.encode())
    assert client is not None
    assert (client.name, client.scopes) == ("app", {Scope.READ, Scope.OPERATE})
    assert key not in made


@pytest.mark.parametrize(
    "text",
    ["app", "app:abc", f"app:write:{'0' * 64}", f":{'0' * 64}", f"a b:{'0' * 64}",
     f"app::{'0' * 64}", f"app:read:x:{'0' * 64}"],
)  # fmt: skip
def test_an_entry_that_is_none_is_named_by_its_number_only(text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_keys(f"{entry('first', 'k', 'read')}, {text}")
    assert raised.value.message.startswith("API_KEYS: entry 2 ")
    assert "0000" not in raised.value.message


# Rates


def test_a_rate_is_counted_for_each_name_and_refills(clock: Clock) -> None:
    rates = Rates(2, clock)
    for _ in range(2):
        assert rates.wait("a") == 0
        rates.take("a", 1)
    assert rates.wait("a") == 1
    assert rates.wait("b") == 0
    clock.advance(0.5)
    assert rates.wait("a") == 0
    rates.take("a", 11)
    assert rates.wait("a") == 6
    clock.advance(100)
    rates.take("a", 2)
    assert rates.wait("a") == 1


# What is refused before the body is read


@pytest.mark.parametrize("target", ["/registrations", "/registrations/batch", "/produce"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_a_body_of_another_type_is_refused(
    fake: FakeSqs, target: str, headers: dict[str, str]
) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.request("POST", target, b"{}", headers=headers)
        assert (answer.status, kind(answer)) == (415, "unsupported-media-type")
        assert answer.bytes_read == 0

    api(fake, test)


def test_a_type_may_have_parameters(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        kind_ = 'Application/JSON; charset="UTF-8"'
        answer = await made.client.post("/registrations", USER, kind=kind_)
        assert answer.status == 202

    api(fake, test)


def test_a_body_that_is_too_large_is_not_read_to_its_end(fake: FakeSqs) -> None:
    async def upload() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536

    async def test(made: Running) -> None:
        headers = {"Content-Type": "application/json"}
        answer = await made.client.request("POST", "/registrations", upload(), headers=headers)
        assert (answer.status, kind(answer)) == (413, "too-large")
        assert answer.headers["connection"] == "close"
        assert answer.bytes_read <= bodies.MOST_BODY + 65_536
        declared = {**headers, "Content-Length": str(bodies.MOST_BODY + 1)}
        answer = await made.client.request("POST", "/registrations", upload(), headers=declared)
        assert (answer.status, answer.bytes_read) == (413, 0)

    api(fake, test)


def test_a_message_that_sqs_would_refuse_for_its_size_is_too_large(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.post("/registrations", USER | {"x": "y" * 3_000})
        assert (answer.status, kind(answer)) == (413, "too-large")
        assert made.bodies == []

    api(fake, test, most_bytes=2_048)


@pytest.mark.parametrize(
    "target", ["/", "/registration", "/registrations/", "/users/s1", "/users/"]
)
def test_a_path_that_is_none(fake: FakeSqs, target: str) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.get(target)
        assert (answer.status, kind(answer)) == (404, "not-found")

    api(fake, test)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [("GET", "/registrations", "POST"), ("DELETE", "/count", "GET"),
     ("POST", f"/registrations/{ID}", "GET"), ("OPTIONS", "/produce", "POST")],
)  # fmt: skip
def test_a_method_that_a_resource_has_not(
    fake: FakeSqs, method: str, target: str, allowed: str
) -> None:
    async def test(made: Running) -> None:
        answer = await made.client.request(method, target)
        assert (answer.status, kind(answer)) == (405, "method-not-allowed")
        assert answer.headers["allow"] == allowed

    api(fake, test)


# Every answer


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "r-1"}, "r-1"),
        ({"traceparent": TRACE}, "0af7651916cd43dd8448eb211c80319c"),
        ({"X-Request-Id": "r-1", "traceparent": TRACE}, "r-1"),
        ({"X-Request-Id": "kim@example.com"}, None),
        ({"X-Request-Id": "x" * 129}, None),
        ({"traceparent": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_id_of_a_request_is_in_the_answer_in_the_log_and_on_the_message(
    fake: FakeSqs,
    headers: dict[str, str],
    expected: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "app.api")

    async def test(made: Running) -> None:
        answer = await made.client.post("/registrations", USER, **headers)
        id_ = answer.headers["x-request-id"]
        if expected is None:
            # It is a new one.
            assert re.fullmatch("[0-9a-f]{32}", id_)
        else:
            assert id_ == expected
        (line,) = (vars(r) for r in caplog.records if getattr(r, "event", "") == "http.request")
        assert line["request_id"] == id_
        assert (line["route"], line["status"], line["method"]) == ("/registrations", 202, "POST")
        (sent,) = fake.entries("SendMessageBatch")
        attributes = {k: v["StringValue"] for k, v in sent["MessageAttributes"].items()}
        trace = headers.get("traceparent") == TRACE
        assert attributes == {"request_id": id_} | ({"traceparent": TRACE} if trace else {})
        assert answer.headers.get("traceparent") == (TRACE if trace else None)

    api(fake, test)


def test_a_line_of_the_log_has_the_name_of_the_key_and_nothing_of_a_user(
    fake: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def test(made: Running) -> None:
        client = made.with_key("all")
        await client.post("/registrations", USER | {"userId": "secret-u"})
        await client.get("/users/secret-s/secret-u")
        await client.get("/users?stockId=secret-s")
        await client.get("/secret-path")
        lines = [vars(r) for r in caplog.records if getattr(r, "event", "") == "http.request"]
        assert [line["client"] for line in lines] == ["all", "all", "all", None]
        assert lines[1]["route"] == "/users/{stockId}/{userId:path}"
        assert "secret" not in json.dumps(lines, default=str)

    api(fake, test, keys=API_KEYS)


def test_an_error_of_the_program_is_a_500_without_its_text(
    fake: FakeSqs, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(made: Running) -> None:
        async def fail(*_: Any) -> None:
            raise KeyError("kim")

        made.outcomes.count = fail  # type: ignore[method-assign]  # a store with a fault
        answer = await made.client.get("/count")
        assert (answer.status, kind(answer)) == (500, "internal-error")
        assert "kim" not in answer.body.decode()
        assert "x-request-id" in answer.headers

    api(fake, test)
    (line,) = (vars(r) for r in caplog.records if getattr(r, "event", "") == "http.failed")
    assert line["error"] == "KeyError"
    assert "kim" not in line["message"]


@pytest.mark.parametrize("is_closed", [True, False])
def test_an_answer_to_a_client_that_is_gone_is_no_failure(
    caplog: pytest.LogCaptureFixture, is_closed: bool
) -> None:
    async def send(_: Message) -> None:
        # As uvloop does if it has not told the server yet that the connection is closed.
        raise RuntimeError

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    front = Front(Response("kim"), lambda: False)
    scope: AsgiScope = {"type": "http", "method": "GET", "path": "/count", "headers": []}
    scope["state"] = {IS_CLOSED: lambda: is_closed}
    asyncio.run(front(scope, receive, send))
    events = [vars(record).get("event") for record in caplog.records]
    assert events.count("http.failed") == (0 if is_closed else 1)


def test_other_origins_may_call_only_if_they_are_named(fake: FakeSqs) -> None:
    async def asked(made: Running, origin: str) -> dict[str, str]:
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key, content-type",
        }
        answer = await made.client.request("OPTIONS", "/registrations", headers=headers)
        return answer.headers

    async def test(made: Running) -> None:
        allowed = "access-control-allow-origin"
        assert (await asked(made, "https://a.test"))[allowed] == "https://a.test"
        assert allowed not in await asked(made, "https://b.test")
        answer = await made.client.post("/registrations", USER, Origin="https://a.test")
        assert answer.headers[allowed] == "https://a.test"
        assert "Location" in answer.headers["access-control-expose-headers"]

    async def off(made: Running) -> None:
        assert not [name for name in await asked(made, "https://a.test") if "access-" in name]

    api(fake, test, origins=["https://a.test"])
    api(fake, off)


# The document


def test_each_operation_is_described_with_its_errors(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        document = (await made.client.get("/openapi.json")).json()
        found = {
            (method.upper(), path): operation
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        }
        names = {operation["operationId"] for operation in found.values()}
        assert len(names) == len(found) == 10
        for (method, _), operation in found.items():
            assert "422" not in operation["responses"]
            assert operation["summary"]
            for status, response in operation["responses"].items():
                assert response["description"]
                assert "X-Request-Id" in response["headers"]
                for media, content in response["content"].items():
                    assert "example" in content or "examples" in content
                    assert media == "application/problem+json" or status in ("200", "202", "503")
            assert ("security" in operation) == ("401" in operation["responses"])
            if method == "POST":
                assert {"400", "401", "403", "408", "413", "415", "429", "503"} <= set(
                    operation["responses"]
                )
                assert "Retry-After" in operation["responses"]["503"]["headers"]
        assert made.service.phase == "ready"

    api(fake, test, keys=API_KEYS)


def test_without_keys_the_document_asks_for_none(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        document = (await made.client.get("/openapi.json")).json()
        assert "securitySchemes" not in document["components"]
        for operations in document["paths"].values():
            for operation in operations.values():
                assert not {"401", "403"} & set(operation["responses"])
                assert "security" not in operation

    api(fake, test)


def test_the_document_is_valid_and_each_reference_of_it_leads_somewhere(fake: FakeSqs) -> None:
    from openapi_spec_validator import validate

    async def test(made: Running) -> None:
        validate((await made.client.get("/openapi.json")).json())

    api(fake, test)


def test_the_documentation_loads_nothing_from_another_host(fake: FakeSqs) -> None:
    async def test(made: Running) -> None:
        page = (await made.client.get("/docs")).body.decode()
        assert "https://" not in page
        assert "http://" not in page
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f"/docs/static/{name}" in page
            assert len((await made.client.get(f"/docs/static/{name}")).body) > 100_000
        assert (await made.client.get("/docs/static/..%2Fcore.py")).status == 404

    api(fake, test)
