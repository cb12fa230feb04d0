"""What an answer of SQS says: codes of errors, the time, the name of a queue."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

#: How SQS says that there is no such queue: boto3's class, and SQS's older word.
NO_QUEUE = frozenset({"QueueDoesNotExist", "NonExistentQueue"})


def bare(code: str) -> str:
    """The code without the name of its service, which only some answers have before it."""
    return code.rpartition(".")[2]


def error_code(exc: Exception) -> str:
    """The code SQS gave, or the class of an error that never reached it."""
    if isinstance(exc, ClientError):
        code = str(exc.response.get("Error", {}).get("Code", "Unknown"))
        return bare(code)
    return type(exc).__name__


def name_of(url: str) -> str:
    """A queue's name: the end of its URL."""
    return url.rstrip("/").rpartition("/")[2]


def date_of(answer: Any) -> datetime | None:
    """When SQS answered, by its own clock, in whole seconds; None where it does not say."""
    text = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    try:
        return parsedate_to_datetime(text).astimezone(UTC) if text else None
    except ValueError:
        return None
