"""The driver that uses boto3. No other file knows boto3 and its exceptions."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, RefreshableCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    InvalidRegionError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from botocore.parsers import ResponseParserError
from botocore.session import get_session

from sqs_broker.errors import ConfigurationError
from sqs_broker.machine.calls import Calls, Full, Overdue
from sqs_broker.machine.seldom import Seldom
from sqs_broker.options import Options, Role
from sqs_broker.sqs.driver import (
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    SECONDS,
    TRIES,
    log_overdue,
    with_known_errors,
)
from sqs_broker.sqs.errors import HANGING, OVERDUE, NoCredentials, SqsError, Unreached
from sqs_broker.sqs.requests import Answer, Request, date_in

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

T = TypeVar("T")

VERSION: str = boto3.__version__

#: The name of this package in AWS's own logs.
USER_AGENT = f"celery-sqs-broker Boto3/{VERSION}"

#: The lowest HTTP status code of an error. botocore itself raises for these.
ERRORS_FROM = 300

#: How botocore says that it found no credentials, or could not read or renew them. Python's own two
#: are those of a file with a token (botocore 1.44 credentials.py lets them through).
NO_CREDENTIALS = (
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
    FileNotFoundError,
    PermissionError,
)

#: For other services of AWS, which only give additional information.
QUICK = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1})

#: The name that CloudTrail shows for calls in an assumed role.
ROLE_SESSION = "celery-sqs-broker"

#: Seconds before the credentials of a role expire: from when on they are renewed while others use
#: them still, and from when on nobody may use them.
RENEWED_EARLY, RENEWED_LATEST = 300, 60

#: Seconds for one whole call of such a service.
QUICK_SECONDS = 10

_seldom = Seldom()


class Boto:
    """Sends requests with a boto3 client, which is created at the first request, and again in a
    forked child.

    boto3 cannot end a call, and its timeouts are those of single reads. So each call runs on a
    thread of its own. After its deadline the thread and the client are left, and the next call gets
    a new client: the old one may hang in a lock.

    `seconds`, `read_timeout`: see `driver_for`. `is_checked`: whether boto3 checks the parameters
    too; otherwise only SQS does.
    """

    def __init__(
        self,
        options: Options,
        *,
        read_timeout: float = READ_TIMEOUT,
        tries: int = TRIES,
        seconds: float = SECONDS,
        is_checked: bool = False,
    ) -> None:
        self._seconds = seconds
        self._config = _config(
            options,
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": tries},
            tcp_keepalive=True,
            # Otherwise botocore builds this string for each call. That and the validation of
            # parameters are a quarter of the time of a call (botocore 1.44 useragent.py,
            # validate.py).
            user_agent=USER_AGENT,
            parameter_validation=is_checked,
        )
        self._pid = os.getpid()
        self._calls = Calls()
        #: The options of the queues that have credentials or a region of their own, by URL.
        self._own = {
            url: own
            for queue in options.queues.values()
            for url in (queue.url, queue.dead_letter_url)
            if url is not None and (own := options.of_queue(url)) is not options
        }
        self._options = options
        self._clients = self._new_clients()

    @property
    def endpoint(self) -> str | None:
        """The URL that calls go to; None before the first one. Of a queue with a region of its own
        it is another one."""
        return self._clients[None].endpoint

    def open(self) -> None:
        """Create the clients. Raises ConfigurationError with the setting that boto3 cannot use, and
        SqsError."""
        for url in (None, *self._own):
            client = self._client_for(url)
            if not client.is_open:
                self._within("open", self._seconds, client, client.open)

    def carry(self, request: Request[Any]) -> Answer:
        """Send a request to SQS. Raises SqsError, and ConfigurationError as `open` does."""
        client = self._client_for(request.parameters.get("QueueUrl"))

        def late(answer: Answer) -> None:
            if request.on_late is not None:
                request.on_late(request.read(answer))

        seconds = self._seconds + request.wait if request.seconds is None else request.seconds
        return self._within(request.action, seconds, client, partial(client.carry, request), late)

    def pause(self, seconds: float) -> None:
        """Wait before a second try."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close the connections."""
        if self._pid == os.getpid():
            for client in self._clients.values():
                client.close()
            self._clients = self._new_clients()

    def _new_clients(self) -> dict[str | None, "_Client"]:
        """The clients of the queues in `_own`, by URL, and under None that of all others."""
        clients: dict[str | None, _Client] = {None: _Client(self._options, self._config)}
        shared: list[tuple[Options, _Client]] = []
        for url, own in self._own.items():
            client = next((c for options, c in shared if options == own), None)
            if client is None:
                client = _Client(own, self._config)
                shared.append((own, client))
            clients[url] = client
        return clients

    def _client_for(self, url: str | None) -> "_Client":
        pid = os.getpid()
        if self._pid != pid:
            # A thread of the parent may have held one of its locks at the fork.
            self._clients = self._new_clients()
            self._pid = pid
        return self._clients.get(url) or self._clients[None]

    def _within(
        self,
        action: str,
        seconds: float,
        client: "_Client",
        call: Callable[[], T],
        on_late: Callable[[T], None] | None = None,
    ) -> T:
        try:
            return self._calls.run(partial(with_known_errors, call), seconds, on_late)
        except Overdue:
            self._replace(client)
            log_overdue(_seldom, action, seconds)
            raise Unreached(OVERDUE) from None
        except Full:
            raise Unreached(HANGING) from None

    def _replace(self, hanging: "_Client") -> None:
        places = [url for url, client in self._clients.items() if client is hanging]
        if places:
            new = hanging.fresh()
            self._clients |= dict.fromkeys(places, new)
            hanging.close()


class _Client:
    """A boto3 client, which is created when it is first needed."""

    def __init__(self, options: Options, config: Config) -> None:
        self._options = options
        self._config = config
        self._lock = threading.Lock()
        self._client: SQSClient | None = None
        #: The methods of the client, by SQS's action.
        self._methods: dict[str, Callable[..., Any]] = {}

    def fresh(self) -> "_Client":
        """Another client with the same options."""
        return _Client(self._options, self._config)

    @property
    def is_open(self) -> bool:
        return self._client is not None

    @property
    def endpoint(self) -> str | None:
        return None if self._client is None else str(self._client.meta.endpoint_url)

    def open(self) -> None:
        with self._lock:
            if self._client is None:
                client = _new_client(self._options, self._config)
                names = client.meta.method_to_api_mapping
                self._methods = {action: getattr(client, name) for name, action in names.items()}
                self._client = client

    def carry(self, request: Request[Any]) -> Answer:
        if self._client is None:
            self.open()
        content = invoke(self._methods[request.action], **request.parameters)
        return Answer(content, content["ResponseMetadata"].get("HTTPHeaders", {}).get("date"))

    def close(self) -> None:
        """Close the connections that no call uses. It can still be used."""
        if self._client is not None:
            self._client.close()


def ask(call: Callable[..., T], *, seconds: float = QUICK_SECONDS, **parameters: Any) -> T:
    """Call a method of a `quick_client`, for at most `seconds`. Raises SqsError."""
    try:
        return Calls().run(partial(invoke, call, **parameters), seconds)
    except Overdue:
        raise Unreached(OVERDUE) from None


def invoke(call: Callable[..., T], **parameters: Any) -> T:
    """Call a method of boto3. Raises SqsError instead of boto3's own exceptions."""
    try:
        return call(**parameters)
    except ClientError as exc:
        raise _refusal(exc) from exc
    except NO_CREDENTIALS as exc:
        raise NoCredentials(type(exc).__name__, str(exc)) from exc
    except (BotoCoreError, ResponseParserError, ConnectionError) as exc:
        raise Unreached(type(exc).__name__, str(exc)) from exc


def new_session(options: Options) -> boto3.session.Session:
    """A session that creates clients of any AWS service. Use it in one thread at a time: sessions
    are not thread-safe, but clients are. With the option `sts_role_arn` it has the credentials of
    that role. Then it calls STS, and raises SqsError."""
    session = boto3.session.Session(region_name=options.region, **options.credentials)
    return session if options.role is None else _in_role(session, options.role, options.region)


def quick_client(options: Options, service: str) -> Any:
    """A client of another AWS service that only gives additional information: one short try.
    Raises as `Boto.open` does."""
    return _client(options, service, config=QUICK)


def read_secret(options: Options, arn: str) -> str | None:
    """The text of a secret of Secrets Manager; None if it has none. One short try. Raises SqsError
    with Secrets Manager's code, and as `Boto.open` does."""
    # The region is the fourth part of an ARN.
    client = quick_client(replace(options, region=arn.split(":")[3]), "secretsmanager")
    try:
        text: str | None = invoke(client.get_secret_value, SecretId=arn).get("SecretString")
    finally:
        client.close()
    return text


class _RoleProvider(CredentialProvider):
    """Gives botocore the credentials of a role, and renews them."""

    METHOD = "sts-assume-role"

    def __init__(self, session: boto3.session.Session, role: Role) -> None:
        super().__init__()
        self._session = session
        self._role = role

    def load(self) -> RefreshableCredentials:
        # botocore's own times for a renewal are those of longer sessions: with the 15 minutes of
        # kombu's default it would renew before each call.
        return RefreshableCredentials.create_from_metadata(
            self._assume(),
            refresh_using=self._assume,
            method=self.METHOD,
            advisory_timeout=RENEWED_EARLY + self._role.early,
            mandatory_timeout=RENEWED_LATEST + self._role.early,
        )

    def _assume(self) -> dict[str, str]:
        client = self._session.client("sts", config=QUICK)
        try:
            answer = client.assume_role(
                RoleArn=self._role.arn,
                RoleSessionName=ROLE_SESSION,
                DurationSeconds=self._role.seconds,
            )
        except ClientError as exc:
            code = _refusal(exc).code
            raise NoCredentials(f"AssumeRole: {code}", str(exc)) from exc
        finally:
            client.close()
        given = answer["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }


def _in_role(session: boto3.session.Session, role: Role, region: str) -> boto3.session.Session:
    core = get_session()
    provider = CredentialResolver([_RoleProvider(session, role)])
    core.register_component("credential_provider", provider)
    return boto3.session.Session(botocore_session=core, region_name=region)


def _config(options: Options, **own: Any) -> Config:
    try:
        return Config(**options.client_config, **own)
    except (TypeError, BotoCoreError):
        # Without the cause, whose text may have the value.
        raise ConfigurationError(
            "broker_transport_options: `client-config` has a name or a value that botocore's "
            "Config does not take. Correct it."
        ) from None


class UnreadableAnswer(BotoCoreError):
    """The answer was cut off, or is not SQS's. It is not known what the call did."""

    fmt = "The answer cannot be read: {why}"


def _new_client(options: Options, config: Config) -> "SQSClient":
    client: SQSClient = _client(options, "sqs", endpoint_url=options.endpoint_url, config=config)
    client.meta.events.register("before-parse.sqs", _refuse_incomplete_answer)
    return client


def _client(options: Options, service: str, **how: Any) -> Any:
    def create() -> Any:
        session: Any = new_session(options)  # The stubs accept literal names only.
        return session.client(service, **how)

    return created(create, options.endpoint_url)


def created(create: Callable[[], T], endpoint_url: str | None) -> T:
    """Create a client for this URL. Raises NoCredentials, and ConfigurationError with the setting
    that boto3 cannot use."""
    try:
        # botocore reads the port at the first call only.
        _ = urlsplit(endpoint_url or "").port
        return create()
    except NO_CREDENTIALS as exc:
        raise NoCredentials(type(exc).__name__, str(exc)) from exc
    except (BotoCoreError, ValueError, OSError) as exc:
        # Without the cause, whose text has the value.
        raise ConfigurationError(_fault_of_settings(exc)) from None


def _fault_of_settings(exc: Exception) -> str:
    """Which setting boto3 cannot use, and what to do. Never its value."""
    if isinstance(exc, ProfileNotFound):
        return (
            "AWS_PROFILE names a profile that is in neither the AWS config file nor the "
            "credentials file. Correct it, or unset it."
        )
    if isinstance(exc, ConfigParseError | ConfigNotFound):
        return (
            f"AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE: {exc.kwargs['path']} cannot be read "
            "as an AWS config file. Correct that file, or set the variable to another one."
        )
    if isinstance(exc, InvalidRegionError):
        return "The option `region` is not the name of a region. Correct it."
    if str(exc).startswith(("Invalid endpoint", "Port ")):
        return "The option `endpoint_url` is not a URL. Correct it."
    return (
        f"boto3 cannot use its settings ({type(exc).__name__}). Correct the environment variables "
        "that begin with AWS_, and the AWS config file."
    )


def _refuse_incomplete_answer(response_dict: dict[str, Any], **_: Any) -> None:
    """Raise if the body is cut off or is not JSON. botocore 1.44 treats such a body as an empty
    answer: no messages, no failures (httpsession.py, parsers.py)."""
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
