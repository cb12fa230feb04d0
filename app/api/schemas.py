"""The schemas of the bodies of requests and answers, with examples."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from app.api.problems import Fault
from app.messages import LARGEST_INTEGER, Registration, UserInfo

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


def ref(name: str) -> Schema:
    """A schema of SCHEMAS."""
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


#: The lines of a batch, or its array.
REGISTRATIONS: Schema = _array(ref("Registration")) | {"minItems": 1}

COUNTS: dict[str, Schema] = {"accepted": WHOLE, "invalid": WHOLE, "unavailable": WHOLE}

SCHEMAS: dict[str, Schema] = {
    "Registration": _of_model(Registration) | {"examples": [REGISTRATION]},
    "UserInfo": _of_model(UserInfo),
    "Increment": _object({"input": NUMBER}) | {"examples": [{"input": 41}]},
    "Links": {"type": "object", "additionalProperties": TEXT},
    "Accepted": _object(
        {"id": TEXT, "state": {"type": "string", "enum": ["pending"]}, "links": ref("Links")}
    )
    | {"description": "SQS has the message."},
    "BatchItem": _object(
        {"state": {"type": "string", "enum": ["pending", "invalid", "unavailable"]}},
        id=TEXT,
        links=ref("Links"),
        errors=_array(ref("Fault")),
    )
    | {"description": "What became of one item: `pending` if SQS has its message."},
    "BatchAnswer": _object({**COUNTS, "items": _array(ref("BatchItem"))})
    | {"description": "The items in the order of the request."},
    "RegistrationState": _object(
        {
            "id": TEXT,
            "state": {"type": "string", "enum": STATES},
            "at": TIME,
            "links": ref("Links"),
        },
        reason=TEXT,
        user=ref("User"),
        conflicts=_array(ref("Conflict")),
    )
    | {
        "description": "`reason` says why a registration failed. `user` is shown to keys with the "
        "scope `read`. `conflicts` has later messages with the same id and another payload."
    },
    "Conflict": _object({"at": TIME, "reason": _or_null(TEXT)}),
    "User": _object(
        {},
        stockId=TEXT,
        userId=TEXT,
        userInfo=_object({}, nickname=TEXT, gender=_or_null(TEXT), introduction=TEXT),
        index=WHOLE,
        money=WHOLE,
        loanCount=WHOLE,
        lastActivityTime=TIME,
        registeredAt=TIME,
    )
    | {"examples": [USER]},
    "Users": _object({"users": _array(ref("User")), "next": _or_null(TEXT)})
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
    "Queues": _object({"queues": _array(ref("Queue"))}),
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
        errors=_array(ref("Fault")),
        **COUNTS,
        items=_array(ref("BatchItem")),
    )
    | {"description": "RFC 9457. `type` is stable. The counts and items are those of a batch."},
}
