"""Read by schemathesis: how an array is written as NDJSON."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: Any, value: Any) -> Any:
    """One line for each element. What is no array is one line, and text is taken as it is."""
    if isinstance(value, str | bytes):
        return value
    return "".join(
        json.dumps(each) + "\n" for each in (value if isinstance(value, list) else [value])
    )
