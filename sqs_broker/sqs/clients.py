"""boto3 clients for SQS, each used on one side of a fork only."""

import json
import os
import threading
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from sqs_broker.options import Options

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

#: Seconds to connect, and to wait for an answer to a call that SQS answers at once.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 10

#: How AWS's own logs name this program.
USER_AGENT = f"sqs-registrations Boto3/{boto3.__version__}"

#: HTTP status codes from which an answer is an error, which botocore raises itself.
ERRORS_FROM = 300


class UnreadableAnswer(BotoCoreError):
    """SQS's answer was cut off, or came from somebody else. What the call did is not known."""

    fmt = "The answer cannot be read: {why}"


def new_client(
    options: Options,
    *,
    read_timeout: float = READ_TIMEOUT,
    tries: int = 3,
    is_checked: bool = False,
) -> "SQSClient":
    """A client of its own session, since sessions are not thread-safe and clients are.

    Its calls fail with an exception of botocore within `read_timeout` seconds a try. `is_checked`:
    their arguments are checked here too, and not by SQS alone.
    """
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": tries},
        tcp_keepalive=True,
        # botocore makes its own anew for each call, and checks arguments: together a quarter of
        # what a call costs (botocore 1.44 useragent.py, validate.py).
        user_agent=USER_AGENT,
        parameter_validation=is_checked,
    )
    client = new_session(options).client("sqs", endpoint_url=options.endpoint_url, config=config)
    client.meta.events.register("before-parse.sqs", _refuse_half_an_answer)
    return client


def new_session(options: Options) -> boto3.session.Session:
    """Where clients of any service of AWS come from; for one thread at a time."""
    return boto3.session.Session(region_name=options.region, **options.credentials)


def _refuse_half_an_answer(response_dict: dict[str, Any], **_: Any) -> None:
    """botocore 1.44 takes a body that is cut off, or no JSON at all, for an empty answer: no
    messages, nothing failed (httpsession.py, parsers.py)."""
    headers, body = response_dict["headers"], response_dict["body"]
    length = headers.get("Content-Length")
    if length is not None and "Content-Encoding" not in headers and int(length) != len(body):
        raise UnreadableAnswer(why=f"{len(body)} of {length} bytes")
    if response_dict["status_code"] < ERRORS_FROM and body:
        try:
            json.loads(body)
        except ValueError:
            raise UnreadableAnswer(why="it is not JSON") from None


class Client:
    """The client for sending, made at first use and made anew in a forked child."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._made: SQSClient | None = None
        self._made_in = 0

    def __call__(self) -> "SQSClient":
        pid = os.getpid()
        if self._made_in != pid:
            # The parent's lock may have been held by another thread at the fork.
            self._lock, self._made, self._made_in = threading.Lock(), None, pid
        with self._lock:
            if self._made is None:
                # Its messages may have attributes of the caller's own.
                self._made = new_client(self._options, is_checked=True)
            return self._made
