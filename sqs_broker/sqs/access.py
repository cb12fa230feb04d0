"""What boto3 knows of the way to SQS, for a client that is not boto3's: the URL, the proxy, the
file of certificates, and the credentials of this moment."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ParamValidationError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from botocore.validate import ParamValidator

from sqs_broker.machine.calls import Calls, Full, Overdue
from sqs_broker.machine.seldom import Seldom
from sqs_broker.options import Options
from sqs_broker.sqs.boto import created, invoke
from sqs_broker.sqs.driver import with_known_errors
from sqs_broker.sqs.errors import HANGING, OVERDUE, NoCredentials, Unreached

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: From so many seconds on, a difference between two clocks is why SQS refuses a signature. AWS
#: accepts 5 minutes: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html
SKEW = 240

#: Most Accesses that a process keeps.
MOST_KEPT = 4

_seldom = Seldom()


class Key(NamedTuple):
    """What signs a call."""

    id: str
    secret: str
    token: str | None


class Route(NamedTuple):
    """How a connection to SQS is made."""

    url: str
    region: str
    ca: str | None
    """The file or the directory of the certificates that are trusted; None for plain HTTP."""
    proxy: str | None


class Access:
    """The way to SQS by some options. Thread-safe. Not for use on both sides of a fork."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._calls = Calls()
        self._session: Any = None
        self._model: Any = None
        self._route: Route | None = None
        self._credentials: Any = None
        self.ahead = 0.0
        """Seconds by which SQS's clock is ahead of this machine's, if SQS refused calls for that.
        """
        self.hangs = False
        """Whether a search for the route or credentials did not end in time. It may hold a lock."""

    @property
    def opened(self) -> Route | None:
        """The route, if `open` has found it."""
        return self._route

    def open(self, seconds: float) -> Route:
        """Find the route, and credentials if they are configured, within `seconds`. Raises
        ConfigurationError with the setting that boto3 cannot use, and SqsError."""
        return self._route or self._within(self._open, seconds)

    def key(self, seconds: float) -> Key:
        """The credentials of this moment, renewed if they end soon. Raises SqsError."""
        found = self._credentials
        if found is None or _may_ask_the_network(found):
            return self._within(self._fetch, seconds)
        return _key(found)

    def check(self, action: str, parameters: Mapping[str, Any]) -> None:
        """Raise Unreached if the parameters of a call are not of the types that SQS takes."""
        shape = self._model.operation_model(action).input_shape
        report = ParamValidator().validate(parameters, shape)
        if report.has_errors():
            error = ParamValidationError(report=report.generate_report())
            raise Unreached(type(error).__name__, str(error))

    # The clock

    def correct_clock(self, at: datetime | None, ahead: float) -> bool:
        """SQS refused a signature at this time of its own clock. `ahead`: what was added to the
        time that was signed. Returns whether the next signature will have another time."""
        if at is None:
            return False
        now_ahead = (at - datetime.now(UTC)).total_seconds()
        if abs(now_ahead - ahead) < SKEW:
            return False
        self.ahead = 0.0 if abs(now_ahead) < SKEW else now_ahead
        if self.ahead and _seldom.allows("clock", monotonic()):
            _log_clock(round(self.ahead))
        return True

    # What boto3 does for it

    def _open(self) -> Route:
        with self._lock:
            if self._route is None:
                core = botocore.session.get_session()
                session, client = created(
                    lambda: _session_and_client(self._options, core), self._options.endpoint_url
                )
                self._session, self._model = session, client.meta.service_model
                self._credentials = invoke(session.get_credentials)
                self._route = _route(client, core)
                client.close()
            return self._route

    def _fetch(self) -> Key:
        if self._credentials is None:
            with self._lock:
                self._credentials = invoke(self._session.get_credentials)
        if self._credentials is None:
            raise NoCredentials("NoCredentialsError", "Unable to locate credentials")
        return invoke(_key, credentials=self._credentials)

    def _within(self, call: Callable[[], T], seconds: float) -> T:
        if seconds <= 0:
            raise Unreached(OVERDUE)
        try:
            return self._calls.run(partial(with_known_errors, call), seconds)
        except Overdue:
            self.hangs = True
            _forget(self)
            raise Unreached(OVERDUE) from None
        except Full:
            raise Unreached(HANGING) from None


def _log_clock(ahead: int) -> None:
    logger.warning(
        "The clock of this machine is %d s %s that of SQS, which refused a call; calls are signed "
        "with SQS's time. Correct the clock, by NTP for example.",
        abs(ahead),
        "behind" if ahead > 0 else "ahead of",
        extra={"event": "sqs.clock", "seconds": ahead},
    )


def access_for(options: Options) -> Access:
    """The Access of this process for these options and these environment variables. A session of
    boto3 takes 8 MiB, and a tenth of a second to create."""
    names = ("AWS_", "REQUESTS_CA_BUNDLE", "HOME", "USERPROFILE")
    key = (
        options.region,
        options.endpoint_url,
        options.credentials,
        {name: value for name, value in os.environ.items() if name.startswith(names)},
        getproxies(),
        {name: value for name, value in os.environ.items() if name.lower() == "no_proxy"},
    )
    with _kept_lock:
        for known, access in _kept:
            if known == key:
                return access
        access = Access(options)
        _kept.append((key, access))
        del _kept[:-MOST_KEPT]
        return access


def _forget(access: Access) -> None:
    with _kept_lock:
        _kept[:] = [each for each in _kept if each[1] is not access]


def _session_and_client(options: Options, core: Any) -> tuple[Any, Any]:
    """The client has no signature, so that it asks for no credentials."""
    session: Any = boto3.session.Session(
        region_name=options.region, botocore_session=core, **options.credentials
    )
    config = Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1})
    return session, session.client("sqs", endpoint_url=options.endpoint_url, config=config)


def _route(client: Any, core: Any) -> Route:
    url = _url(client)
    scheme = urlsplit(url).scheme
    # As a client does (botocore 1.44 session.py `create_client`, endpoint.py, httpsession.py).
    ca = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    proxy = get_environ_proxies(url).get(scheme)
    if proxy and not proxy.startswith(("http:", "https:")):
        proxy = f"http:{'' if proxy.startswith('//') else '//'}{proxy}"
    is_plain = scheme == "http"
    return Route(
        url, client.meta.region_name, None if is_plain else ca or get_cert_path(True), proxy
    )


class _Seen(Exception):
    """The client has made a request, which is not sent."""


def _url(client: Any) -> str:
    """The URL that the client would call. It depends on many settings."""
    urls: list[str] = []

    def see(request: Any, **_: Any) -> None:
        urls.append(request.url)
        raise _Seen

    client.meta.events.register("before-send.sqs", see)
    with suppress(_Seen):
        client.list_queues()
    return urls[0]


def _may_ask_the_network(credentials: Any) -> bool:
    """Whether the next use of these credentials renews them. Those that never end do not have the
    method (botocore 1.44 credentials.py)."""
    needs: Callable[[], bool] | None = getattr(credentials, "refresh_needed", None)
    return needs is not None and needs()


def _key(credentials: Any) -> Key:
    frozen = credentials.get_frozen_credentials()
    return Key(frozen.access_key, frozen.secret_key, frozen.token)


_kept: list[tuple[Any, Access]] = []
_kept_lock = threading.Lock()


def _forget_all() -> None:
    global _kept_lock
    _kept_lock = threading.Lock()
    _kept.clear()


# Another thread of the parent may have held a lock at the fork.
os.register_at_fork(after_in_child=_forget_all)
