"""The errors of the API, as RFC 9457 describes them (https://www.rfc-editor.org/rfc/rfc9457).

The text of a problem has names of fields, settings and limits, and nothing that came with the
request.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"

#: What each `type` begins with.
PREFIX = "urn:sqs-registrations:problem:"

#: What may be a fault of one part of a request.
MOST_FAULTS = 100


class Kind(Enum):
    """The kinds of problems: name, HTTP status, title. The name is stable."""

    INVALID = ("invalid-request", 400, "The request is not valid.")
    MALFORMED = ("malformed-json", 400, "The body is not JSON.")
    UNKNOWN_KEY = ("unknown-key", 401, "The request needs a valid API key.")
    FORBIDDEN = ("forbidden", 403, "The API key does not allow this.")
    NOT_FOUND = ("not-found", 404, "There is no such resource.")
    METHOD = ("method-not-allowed", 405, "The resource does not have this method.")
    TIMEOUT = ("request-timeout", 408, "The request took too long to arrive.")
    TOO_LARGE = ("too-large", 413, "The request is too large.")
    MEDIA_TYPE = ("unsupported-media-type", 415, "The body is of a type that is not accepted.")
    RATE = ("rate-limited", 429, "The API key has used up its rate.")
    HEADERS = ("headers-too-large", 431, "The headers are too large.")
    INTERNAL = ("internal-error", 500, "The server has failed.")
    UNAVAILABLE = ("unavailable", 503, "The request cannot be served now.")

    def __init__(self, slug: str, status: int, title: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title

    @property
    def type(self) -> str:
        """The stable URI of this kind."""
        return PREFIX + self.slug


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a request."""

    detail: str
    """What is wrong. Never a value of the request."""
    pointer: str | None = None
    """Where in the body, as a JSON pointer in a URI fragment: `#/userInfo/nickname`."""
    parameter: str | None = None
    """The name of the query parameter or header that is at fault."""

    def as_json(self) -> dict[str, str]:
        """As an element of `errors`."""
        place = {"pointer": self.pointer, "parameter": self.parameter}
        return {**{k: v for k, v in place.items() if v is not None}, "detail": self.detail}


@dataclass
class Problem(Exception):
    """Ends a request with a problem. `more` are further members of the body."""

    kind: Kind
    detail: str = ""
    faults: Sequence[Fault] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def invalid(*faults: Fault) -> Problem:
    """The problem of a request with these faults."""
    many = len(faults) > MOST_FAULTS
    detail = f"Only the first {MOST_FAULTS} of {len(faults)} faults are listed." if many else ""
    return Problem(Kind.INVALID, detail, faults[:MOST_FAULTS])


def unavailable(detail: str, retry_after: int) -> Problem:
    """The problem of a request that may succeed after `retry_after` seconds."""
    return Problem(Kind.UNAVAILABLE, detail, headers={"Retry-After": str(retry_after)})


def too_large(detail: str) -> Problem:
    """The problem of a body that is not read to its end. The connection ends after the answer."""
    return Problem(Kind.TOO_LARGE, detail, headers={"Connection": "close"})


def content_of(problem: Problem) -> bytes:
    """The body of the answer."""
    kind = problem.kind
    content: dict[str, Any] = {"type": kind.type, "title": kind.title, "status": kind.status}
    if problem.detail:
        content["detail"] = problem.detail
    if problem.faults:
        content["errors"] = [fault.as_json() for fault in problem.faults]
    return json.dumps({**content, **problem.more}).encode()


def response_of(problem: Problem) -> Response:
    """The answer to a request with this problem."""
    return Response(
        content_of(problem), problem.kind.status, problem.headers, media_type=MEDIA_TYPE
    )
