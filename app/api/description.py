"""The OpenAPI document of the API: what each operation takes and answers, with examples."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from app.api import bodies
from app.api.keys import Scope
from app.api.problems import MEDIA_TYPE, Fault, Kind, Problem, content_of
from app.messages import LARGEST_INTEGER, Registration, UserInfo

TITLE = "Registrations"
VERSION = "1"
SCHEMES = {"ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}

ABOUT = """\
Registers users of a stock game. A registration is put on a queue and answered at once; a worker
writes the user. Ask for the state of the registration to learn what became of it.

Each request may have `X-Request-Id` or `traceparent`. Both are in the answer, and on the message.
Fields of bodies are accepted in both spellings: `stockId` and `stock_id`.
"""

ID = "5f2c91d0b1946ac92492d2347c6235b4d2611184"
REGISTRATION = {
    "stockId": "s1",
    "userId": "u1",
    "userInfo": {"nickname": "kim", "gender": "F"},
}
ACCEPTED = {"id": ID, "state": "pending", "links": {"self": f"/registrations/{ID}"}}
AT = "2026-11-27T12:00:00.000000Z"
USER = {
    "stockId": "s1",
    "userId": "u1",
    "userInfo": {"nickname": "kim", "gender": "F", "introduction": ""},
    "index": 0,
    "money": 1_000_000,
    "loanCount": 0,
    "lastActivityTime": AT,
    "registeredAt": AT,
}
FAULT = Fault("Field required", "#/userInfo/nickname")
STATES = ["pending", "registered", "conflict", "failed", "expired"]

Schema = dict[str, Any]


def _object(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
TIME: Schema = {"type": "string", "format": "date-time"}
NUMBER: Schema = {"type": "number", "minimum": -LARGEST_INTEGER, "maximum": LARGEST_INTEGER}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _of_model(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


COUNTS: dict[str, Schema] = {"accepted": WHOLE, "invalid": WHOLE, "unavailable": WHOLE}

SCHEMAS: dict[str, Schema] = {
    "Registration": _of_model(Registration) | {"examples": [REGISTRATION]},
    "UserInfo": _of_model(UserInfo),
    "Increment": _object({"input": NUMBER}) | {"examples": [{"input": 41}]},
    "Links": {"type": "object", "additionalProperties": TEXT},
    "Accepted": _object(
        {"id": TEXT, "state": {"type": "string", "enum": ["pending"]}, "links": _ref("Links")}
    )
    | {"description": "SQS has the message."},
    "BatchItem": _object(
        {"state": {"type": "string", "enum": ["pending", "invalid", "unavailable"]}},
        id=TEXT,
        links=_ref("Links"),
        errors=_array(_ref("Fault")),
    )
    | {"description": "What became of one item: `pending` if SQS has its message."},
    "BatchAnswer": _object({**COUNTS, "items": _array(_ref("BatchItem"))})
    | {"description": "The items in the order of the request."},
    "RegistrationState": _object(
        {
            "id": TEXT,
            "state": {"type": "string", "enum": STATES},
            "at": TIME,
            "links": _ref("Links"),
        },
        reason=TEXT,
        user=_ref("User"),
        conflicts=_array({"type": "object"}),
    )
    | {
        "description": "`reason` says why a registration failed. `user` is shown to keys with the "
        "scope `read`. `conflicts` has later messages with the same id and another payload."
    },
    "User": {"type": "object", "examples": [USER]},
    "Users": _object({"users": _array(_ref("User")), "next": _or_null(TEXT)})
    | {"description": "`next` is the parameter `after` of the next page; null on the last one."},
    "Queue": _object(
        {
            "queue": TEXT,
            "isKnown": {"type": "boolean"},
            "visible": _or_null(WHOLE),
            "inFlight": _or_null(WHOLE),
            "delayed": _or_null(WHOLE),
            "oldest": _or_null(WHOLE),
            "deadLettersOf": _or_null(TEXT),
        }
    )
    | {
        "description": "`oldest` is the age of the oldest message in seconds; null if it is not "
        "known. `deadLettersOf` is the queue whose dead-letter queue this is. `isKnown` is false "
        "if SQS did not count."
    },
    "Queues": _object({"queues": _array(_ref("Queue"))}),
    "Count": _object({"count": {"type": "number"}}),
    "Health": _object({"status": TEXT}),
    "Readiness": _object(
        {
            "status": {"type": "string", "enum": ["starting", "ready", "draining"]},
            "dependencies": {
                "type": "object",
                "additionalProperties": {"type": "string", "enum": ["ok", "degraded"]},
            },
        }
    ),
    "Fault": _object({"detail": TEXT}, pointer=TEXT, parameter=TEXT)
    | {
        "description": "`pointer` is a JSON pointer in a URI fragment (RFC 6901) into the body; "
        "`parameter` is the name of a query parameter or header."
    },
    "Problem": _object(
        {"type": TEXT, "title": TEXT, "status": {"type": "integer"}},
        detail=TEXT,
        errors=_array(_ref("Fault")),
        **COUNTS,
        items=_array(_ref("BatchItem")),
    )
    | {"description": "RFC 9457. `type` is stable. The counts and items are those of a batch."},
}

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
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
        "example": "b1946ac9-2492",
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


def json_body(schema: str, example: Any) -> Schema:
    """The body of a request or an answer in JSON."""
    return {bodies.JSON: {"schema": _ref(schema), "example": example}}


BATCH_BODY: Schema = {
    bodies.NDJSON: {
        "schema": {"type": "string", "description": "One registration in each line."},
        "example": '{"stockId":"s1","userId":"u1","userInfo":{"nickname":"kim"}}\n'
        '{"stockId":"s1","userId":"u2","userInfo":{"nickname":"lee"}}\n',
    },
    bodies.JSON: {
        "schema": _array(_ref("Registration")) | {"minItems": 1},
        "example": [REGISTRATION],
    },
}

#: The kinds of problems that a request with an API key, a body, or a message for SQS can have.
KEY = (Kind.UNKNOWN_KEY, Kind.FORBIDDEN, Kind.RATE)
BODY = (Kind.INVALID, Kind.MALFORMED, Kind.TIMEOUT, Kind.TOO_LARGE, Kind.MEDIA_TYPE)
ALWAYS = (Kind.METHOD, Kind.HEADERS, Kind.INTERNAL)


def operation(
    name: str,
    summary: str,
    text: str,
    *,
    answer: Schema,
    status: int = 200,
    scopes: Iterable[Scope] | None = (),
    parameters: Iterable[str] = (),
    body: Schema | None = None,
    problems: Iterable[Kind] = (),
    headers: Schema | None = None,
) -> dict[str, Any]:
    """The arguments of `add_api_route` that describe an operation. `scopes`: None if it needs no
    key."""
    kinds = [*problems, *(BODY if body else ()), *(KEY if scopes is not None else ()), *ALWAYS]
    extra: Schema = {
        "parameters": [PARAMETERS[each] for each in parameters],
        "responses": _problems(kinds)
        | {str(status): {"description": summary, "content": answer, "headers": headers or {}}},
    }
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
                "content": {MEDIA_TYPE: {"schema": _ref("Problem"), "examples": {}}},
            },
        )
        found["content"][MEDIA_TYPE]["examples"][kind.slug] = {"value": _example(kind)}
        if kind in (Kind.RATE, Kind.UNAVAILABLE):
            found["headers"] = RETRY_AFTER
    return responses


def _example(kind: Kind) -> Any:
    import json

    return json.loads(content_of(Problem(kind, faults=[FAULT] if kind is Kind.INVALID else ())))


def completed(document: dict[str, Any], has_keys: bool) -> dict[str, Any]:
    """FastAPI's document with the schemas and the way to pass a key, if there are keys."""
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
