"""The OpenAPI document of the API: what each operation takes and answers, with examples."""

import json
from collections.abc import Iterable
from typing import Any

from app.api import bodies
from app.api.keys import Scope
from app.api.problems import MEDIA_TYPE, Kind, Problem, content_of
from app.api.schemas import (
    ACCEPTED,
    AT,
    FAULT,
    ID,
    REGISTRATION,
    REGISTRATIONS,
    SCHEMAS,
    TEXT,
    USER,
    Schema,
    ref,
)

TITLE = "Registrations"
VERSION = "1"
SCHEMES = {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}

ABOUT = """\
Registers users of a stock game. A registration is put on a queue and answered at once; a worker
writes the user. Ask for the state of the registration to learn what became of it.

Each request may have `X-Request-Id` or `traceparent`. Both are in the answer, and on the message.
Fields of bodies are accepted in both spellings: `stockId` and `stock_id`.
"""

RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which the request may succeed.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
REQUEST_ID = {
    "X-Request-Id": {
        "description": "The id of the request.",
        "required": True,
        "schema": TEXT,
    }
}

PARAMETERS: dict[str, Schema] = {
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Requests with the same key, for the same user, are the same registration. "
        "1 to 128 printable ASCII characters, with or without quotes.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            # Not `""`, which is empty. Spaces at both ends are not part of a header's value.
            "pattern": '^(?!""$)[!-~]([ -~]*[!-~])?$',
        },
        # No example: /docs would send it, and every user of the page would have the same key.
    },
    "id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The id that the answer to the registration has.",
        "schema": {"type": "string", "minLength": 1},
        "example": ID,
    },
    "wait": {
        "name": "wait",
        "in": "query",
        "description": "Seconds to hold the answer until the state is final.",
        "schema": {"type": "integer", "minimum": 0, "maximum": 60, "default": 0},
        "example": 5,
    },
    "stockId": {
        "name": "stockId",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "example": "s1",
    },
    "userId": {
        "name": "userId",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "example": "u1",
    },
    "stock": {
        "name": "stockId",
        "in": "query",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "example": "s1",
    },
    "limit": {
        "name": "limit",
        "in": "query",
        "description": "Most users of the page.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    },
    "after": {
        "name": "after",
        "in": "query",
        "description": "`next` of the page before.",
        "schema": TEXT,
    },
}


def _json(schema: str, example: Any) -> Schema:
    """The body of a request or an answer in JSON."""
    return {bodies.JSON: {"schema": ref(schema), "example": example}}


BATCH_BODY: Schema = {
    bodies.NDJSON: {
        # Of its lines. Text that is no JSON is an example as it is.
        "schema": REGISTRATIONS | {"description": "One registration in each line."},
        "example": '{"stockId":"s1","userId":"u1","userInfo":{"nickname":"kim"}}\n'
        '{"stockId":"s1","userId":"u2","userInfo":{"nickname":"lee"}}\n',
    },
    bodies.JSON: {"schema": REGISTRATIONS, "example": [REGISTRATION]},
}

#: The kinds of problems that a request with an API key, a body, or a message for SQS can have.
KEY = (Kind.UNKNOWN_KEY, Kind.FORBIDDEN, Kind.RATE)
BODY = (Kind.INVALID, Kind.MALFORMED, Kind.TIMEOUT, Kind.TOO_LARGE, Kind.MEDIA_TYPE)
ALWAYS = (Kind.METHOD, Kind.HEADERS, Kind.INTERNAL)


def _operation(
    name: str,
    summary: str,
    text: str,
    *,
    tag: str,
    answer: Schema,
    status: int = 200,
    scopes: Iterable[Scope] | None = (),
    parameters: Iterable[str] = (),
    body: Schema | None = None,
    problems: Iterable[Kind] = (),
    headers: Schema | None = None,
    links: Schema | None = None,
) -> dict[str, Any]:
    """The arguments of `add_api_route` that describe an operation. `scopes`: None if it needs no
    key."""
    kinds = [*problems, *(BODY if body else ()), *(KEY if scopes is not None else ()), *ALWAYS]
    extra: Schema = {
        "parameters": [PARAMETERS[each] for each in parameters],
        "responses": _problems(kinds)
        | {str(status): {"description": summary, "content": answer, "headers": headers or {}}},
    }
    if links is not None:
        extra["responses"][str(status)]["links"] = links
    if body is not None:
        extra["requestBody"] = {"required": True, "content": body}
    if scopes is not None:
        # An API without keys is open to its own machine.
        extra["security"] = [{"ApiKey": []}]
        needed = " or ".join(f"`{scope}`" for scope in scopes)
        text += f"\n\nNeeds a key with the scope {needed}." if needed else "\n\nNeeds any key."
    for response in extra["responses"].values():
        response["headers"] = {**REQUEST_ID, **response.get("headers", {})}
    return {
        "operation_id": name,
        # Generators of clients name classes and modules by it.
        "tags": [tag],
        "summary": summary,
        "description": text,
        "status_code": status,
        "openapi_extra": extra,
    }


def _problems(kinds: Iterable[Kind]) -> Schema:
    responses: Schema = {}
    for kind in sorted(set(kinds), key=lambda kind: (kind.status, kind.slug)):
        found = responses.setdefault(
            str(kind.status),
            {
                "description": kind.title,
                "content": {MEDIA_TYPE: {"schema": ref("Problem"), "examples": {}}},
            },
        )
        found["content"][MEDIA_TYPE]["examples"][kind.slug] = {"value": _example(kind)}
        if kind in (Kind.RATE, Kind.UNAVAILABLE):
            found["headers"] = RETRY_AFTER
    return responses


def _example(kind: Kind) -> Any:
    return json.loads(content_of(Problem(kind, faults=[FAULT] if kind is Kind.INVALID else ())))


LOCATION = {
    "Location": {
        "description": "Where to ask for the state.",
        "required": True,
        "schema": TEXT,
    }
}
#: A client may follow it: https://spec.openapis.org/oas/v3.1.1.html#link-object
STATE_LINK = {
    "state": {
        "operationId": "getRegistration",
        "parameters": {"id": "$response.body#/id"},
        "description": "What became of it.",
    }
}
ITEM = {"state": "pending", "id": ID, "links": {"self": f"/registrations/{ID}"}}
QUEUE = {
    "queue": "sdc-sqs",
    "isKnown": True,
    "visible": 3,
    "inFlight": 2,
    "delayed": 0,
    "oldest": 4,
    "deadLettersOf": None,
}
READY = {"status": "ready", "dependencies": {"sqs": "ok", "mongodb": "degraded"}}

#: The operations, by their operationId.
OPERATIONS: dict[str, dict[str, Any]] = {
    described["operation_id"]: described
    for described in (
        _operation(
            "registerUser",
            "Register a user",
            "The message is on the queue when the answer comes. A repeat of the request has the "
            "same id.",
            tag="registrations",
            scopes=[Scope.REGISTER],
            parameters=["Idempotency-Key"],
            body=_json("Registration", REGISTRATION),
            answer=_json("Accepted", ACCEPTED),
            status=202,
            problems=[Kind.UNAVAILABLE],
            headers=LOCATION,
            links=STATE_LINK,
        ),
        _operation(
            "registerUsers",
            "Register many users",
            "At most 10,000 registrations: a line of at most 1 MiB for each, together at most 64 "
            "MiB; or a JSON array of at most 1 MiB. The answer comes after the last one. It is 202 "
            "if any was accepted.",
            tag="registrations",
            scopes=[Scope.REGISTER],
            parameters=["Idempotency-Key"],
            body=BATCH_BODY,
            answer=_json(
                "BatchAnswer", {"accepted": 1, "invalid": 0, "unavailable": 0, "items": [ITEM]}
            ),
            status=202,
            problems=[Kind.UNAVAILABLE],
        ),
        _operation(
            "getRegistration",
            "What became of a registration",
            "A key without the scope `read` sees only what it has sent itself, without the user.",
            tag="registrations",
            scopes=[Scope.REGISTER, Scope.READ],
            parameters=["id", "wait"],
            answer=_json(
                "RegistrationState",
                {"id": ID, "state": "registered", "at": AT, "links": ITEM["links"]},
            ),
            problems=[Kind.INVALID, Kind.NOT_FOUND, Kind.UNAVAILABLE],
        ),
        _operation(
            "listUsers",
            "The users of a stock",
            "In a stable order, by pages.",
            tag="users",
            scopes=[Scope.READ],
            parameters=["stock", "limit", "after"],
            answer=_json("Users", {"users": [USER], "next": None}),
            problems=[Kind.INVALID, Kind.UNAVAILABLE],
        ),
        _operation(
            "getUser",
            "One user",
            "A slash in an id is written as `%2F`.",
            tag="users",
            scopes=[Scope.READ],
            parameters=["stockId", "userId"],
            answer=_json("User", USER),
            problems=[Kind.NOT_FOUND, Kind.UNAVAILABLE],
        ),
        _operation(
            "listQueues",
            "How many messages each queue has",
            "As SQS counts them: approximately.",
            tag="queues",
            scopes=[Scope.OPERATE],
            answer=_json("Queues", {"queues": [QUEUE]}),
            problems=[Kind.UNAVAILABLE],
        ),
        _operation(
            "produce",
            "Add one to the running count",
            "Queues the task `increment`. Without an Idempotency-Key each request counts.",
            tag="count",
            scopes=[Scope.REGISTER],
            parameters=["Idempotency-Key"],
            body=_json("Increment", {"input": 41}),
            answer=_json("Accepted", {**ACCEPTED, "links": {"count": "/count"}}),
            status=202,
            problems=[Kind.UNAVAILABLE],
        ),
        _operation(
            "getCount",
            "The running count",
            "How many increments were applied.",
            tag="count",
            answer=_json("Count", {"count": 7}),
            problems=[Kind.UNAVAILABLE],
        ),
        _operation(
            "isAlive",
            "Whether the process runs",
            "Always 200.",
            tag="health",
            scopes=None,
            answer=_json("Health", {"status": "ok"}),
        ),
        _operation(
            "isReady",
            "Whether the process takes requests",
            "It fails only while the process starts or stops. A dependency that is away is "
            "`degraded`.",
            tag="health",
            scopes=None,
            answer=_json("Readiness", READY),
        ),
    )
}
_ready: Schema = OPERATIONS["isReady"]["openapi_extra"]["responses"]
_ready["503"] = {
    **_ready["200"],
    "description": "The process starts or stops",
    "content": _json("Readiness", {**READY, "status": "draining"}),
}


def completed(document: dict[str, Any], has_keys: bool, longest_wait: int) -> dict[str, Any]:
    """FastAPI's document with the schemas, the longest `wait` in seconds, and the way to pass a
    key, if there are keys."""
    for operations in document["paths"].values():
        for described in operations.values():
            described["parameters"] = [
                _up_to(longest_wait, each) if each["name"] == "wait" else each
                for each in described.get("parameters", ())
            ]
    components = document.setdefault("components", {})
    components["schemas"] = SCHEMAS
    if has_keys:
        components["securitySchemes"] = SCHEMES
        return document
    for operations in document["paths"].values():
        for described in operations.values():
            described.pop("security", None)
            for kind in (Kind.UNKNOWN_KEY, Kind.FORBIDDEN):
                described["responses"].pop(str(kind.status), None)
    return document


def _up_to(most: int, parameter: Schema) -> Schema:
    return {**parameter, "schema": {**parameter["schema"], "maximum": most}}
