"""The headers of a request, in a mapping. Starlette's `Headers` goes through all of them at each
look, which was a tenth of the CPU time of a request."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import Scope

#: The name of the mapping in the state of a request.
_KEPT = "headers"


def keep(scope: Scope) -> Mapping[bytes, bytes]:
    """The first value of each header, by its name in lower case. It is kept for `header`."""
    given: Mapping[bytes, bytes] = dict(reversed(scope["headers"]))
    scope.setdefault("state", {})[_KEPT] = given
    return given


def header(request: Request, name: bytes) -> str | None:
    """The first value of a header of a request whose headers were kept."""
    value = request.scope["state"][_KEPT].get(name)
    return None if value is None else value.decode("latin-1")
