"""boto3 as a driver: the one file that knows boto3 and its exceptions."""

import json
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from sqs_broker.options import Options
from sqs_broker.sqs.driver import CONNECT_TIMEOUT, READ_TIMEOUT, TRIES
from sqs_broker.sqs.errors import SqsError, Unreached
from sqs_broker.sqs.requests import Answer, Request, date_in

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

T = TypeVar("T")

VERSION: str = boto3.__version__

#: How AWS's own logs name this package.
USER_AGENT = f"celery-sqs-broker Boto3/{VERSION}"

#: HTTP status codes from which an answer is an error, which botocore raises itself.
ERRORS_FROM = 300

#: For services of AWS besides SQS, which only add to what is told.
QUICK = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1})


class Boto:
    """A client of boto3, made at the first request, and made anew in a forked child.

    A call fails within `read_timeout` seconds a try. `is_checked`: its parameters are checked here
    too, and not by SQS alone.
    """

    def __init__(
        self,
        options: Options,
        *,
        read_timeout: float = READ_TIMEOUT,
        tries: int = TRIES,
        is_checked: bool = False,
    ) -> None:
        self._options = options
        self._config = Config(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": tries},
            tcp_keepalive=True,
            # botocore makes its own anew for each call, and checks arguments: together a quarter
            # of what a call costs (botocore 1.44 useragent.py, validate.py).
            user_agent=USER_AGENT,
            parameter_validation=is_checked,
        )
        self._lock = threading.Lock()
        self._client: SQSClient | None = None
        #: Its methods, by the names of SQS's actions.
        self._calls: dict[str, Callable[..., Any]] = {}
        self._made_in = 0

    def open(self) -> None:
        """Make the client. Raises ValueError for an endpoint that is no URL, and SqsError."""
        pid = os.getpid()
        if self._made_in != pid:
            # The parent's lock may have been held by another thread at the fork.
            self._lock, self._client, self._made_in = threading.Lock(), None, pid
        with self._lock:
            if self._client is None:
                client = asked(_new_client, options=self._options, config=self._config)
                names = client.meta.method_to_api_mapping
                self._calls = {action: getattr(client, name) for name, action in names.items()}
                self._client = client

    def carry(self, request: Request[Any]) -> Answer:
        """Bring a request to SQS. Raises SqsError, and what boto3 lets through of other libraries
        as it is."""
        if self._client is None or self._made_in != os.getpid():
            self.open()
        content = asked(self._calls[request.action], **request.parameters)
        return Answer(content, content["ResponseMetadata"].get("HTTPHeaders", {}).get("date"))

    def pause(self, seconds: float) -> None:
        """Wait before a second try."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None and self._made_in == os.getpid():
            self._client.close()
            self._client = None


def asked(call: Callable[..., T], **parameters: Any) -> T:
    """What a method of boto3 returns. Raises SqsError in place of boto3's own exceptions."""
    try:
        return call(**parameters)
    except ClientError as exc:
        raise _refusal(exc) from exc
    except (BotoCoreError, ResponseParserError, ConnectionError) as exc:
        raise Unreached(type(exc).__name__, str(exc)) from exc


def new_session(options: Options) -> boto3.session.Session:
    """Where clients of any service of AWS come from; for one thread at a time, since sessions are
    not thread-safe and clients are."""
    return boto3.session.Session(region_name=options.region, **options.credentials)


def quick_client(options: Options, service: str) -> Any:
    """A client of another service of AWS, which only adds to what is told: one short try."""
    session: Any = new_session(options)  # The stubs know each service by its literal name alone.
    return session.client(service, config=QUICK)


class UnreadableAnswer(BotoCoreError):
    """SQS's answer was cut off, or came from somebody else. What the call did is not known."""

    fmt = "The answer cannot be read: {why}"


def _new_client(options: Options, config: Config) -> "SQSClient":
    client = new_session(options).client("sqs", endpoint_url=options.endpoint_url, config=config)
    client.meta.events.register("before-parse.sqs", _refuse_half_an_answer)
    return client


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


def _refusal(exc: ClientError) -> SqsError:
    headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    code = str(exc.response.get("Error", {}).get("Code", "Unknown"))
    return SqsError(code, str(exc), at=date_in(headers.get("date")))
