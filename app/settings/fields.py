"""The types of settings that several classes have."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, StringConstraints
from pydantic_core import PydanticCustomError

#: A line end that a copied file left at the end of a value is as invisible as a space.
NO_SPACE = "without a space, a line end or another invisible character"


def _region(value: str) -> str:
    # As botocore 1.44 requires it (utils.py `validate_region_name`).
    if not re.fullmatch(r"(?![0-9]+\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)", value):
        raise _fault(f"should be the name of a region, such as eu-west-1, {NO_SPACE}")
    return value


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not (is_url and _is_visible(value)):
        raise _fault(f"should be a URL that begins with http:// or https://, {NO_SPACE}")
    return value


def _secret(value: SecretStr) -> SecretStr:
    if not _is_visible(value.get_secret_value()):
        raise _fault(f"should be {NO_SPACE}")
    return value


def capitals(value: Any) -> Any:
    """The value in capitals, if it is text."""
    return value.upper() if isinstance(value, str) else value


def _is_visible(value: str) -> bool:
    return value.isprintable() and " " not in value


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError("setting", text)


Region = Annotated[str, AfterValidator(_region)]
Url = Annotated[str, AfterValidator(_url)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Arn = Annotated[str, StringConstraints(pattern=r"^arn:[^\s:]+(:[^\s:]*){4,}$")]
