"""The driver that uses libcurl. Its calls take less of a CPU than boto3's, and no second thread."""

import os
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

from sqs_broker.machine.calls import Calls, Full, Overdue
from sqs_broker.machine.seldom import Seldom
from sqs_broker.options import Options
from sqs_broker.rules.randomness import RANDOM
from sqs_broker.sqs.access import Access, Key, access_for
from sqs_broker.sqs.driver import READ_TIMEOUT, SECONDS, TRIES, log_overdue
from sqs_broker.sqs.errors import HANGING, OVERDUE, THROTTLED, SqsError, Unreached
from sqs_broker.sqs.handle import VERSION, Handle, Response
from sqs_broker.sqs.requests import Answer, Request
from sqs_broker.sqs.wire import CONTENT_TYPE, TARGET, UNREADABLE, decode, encode, refusal

#: The name of this package in AWS's own logs.
USER_AGENT = f"celery-sqs-broker libcurl/{VERSION}"

#: The lowest HTTP status code of an error.
ERRORS_FROM = 300

#: Statuses after which a call is tried again, whatever its error code is, and the longest pauses
#: before the second try, in seconds: as boto3 does it (botocore 1.44 retries/standard.py).
TEMPORARY = frozenset({429, 500, 502, 503, 504})
FIRST_PAUSE = 0.05
FIRST_PAUSE_IF_THROTTLED = 1.0
LONGEST_PAUSE = 20.0

#: SQS refused the signature. Its time may be the reason.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
OF_THE_CLOCK = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidSecurity",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestInTheFuture",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)

#: Seconds for an answer that arrives after its deadline.
LATE = 120.0

_seldom = Seldom()


class Curl:
    """Sends requests with libcurl, on the thread of the caller. boto3's session finds the region's
    URL, the proxy, the certificates and the credentials.

    A call that is over its deadline is ended, and its connection closed. Only if its request has
    `on_late`, another thread waits for its answer.

    `seconds`, `read_timeout`: see `driver_for`. `is_checked`: whether the types of message
    attributes are checked before the call, as boto3 does; otherwise only SQS does.
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
        self._options = options
        self._read_timeout = read_timeout
        self._tries = tries
        self._seconds = seconds
        self._is_checked = is_checked
        self._pid = os.getpid()
        self._late = Calls()
        self._access: Access | None = None
        #: Those that no call uses.
        self._handles: list[Handle] = []

    @property
    def endpoint(self) -> str | None:
        """The URL that calls go to; None before the first one."""
        route = self._access and self._access.opened
        return route.url.rstrip("/") if route else None

    def open(self) -> None:
        """Find the way to SQS. Raises ConfigurationError with the setting that boto3 cannot use,
        and SqsError."""
        self._own_access().open(self._seconds)

    def carry(self, request: Request[Any]) -> Answer:
        """Send a request to SQS. Raises SqsError, and ConfigurationError as `open` does."""
        seconds = self._seconds + request.wait if request.seconds is None else request.seconds
        try:
            return self._carry(request, monotonic() + seconds)
        except Unreached as error:
            if error.code == OVERDUE:
                log_overdue(_seldom, request.action, seconds)
            raise

    def pause(self, seconds: float) -> None:
        """Wait before a second try."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close the connections."""
        if self._pid == os.getpid():
            with suppress(IndexError):
                while True:
                    self._handles.pop().close()

    # No exception but those of the used libraries is caught below, because any other one is a
    # signal handler's: this is the caller's thread.

    def _carry(self, request: Request[Any], ends_at: float) -> Answer:
        access = self._own_access()
        access.open(ends_at - monotonic())
        if self._is_checked and _has_attributes(request):
            access.check(request.action, request.parameters)
        body = _encoded(request)
        for attempt in range(1, self._tries + 1):
            try:
                return self._answer(access, request, body, ends_at)
            except _Failed as failed:
                pause = RANDOM.uniform(0, failed.longest_pause(attempt))
                is_last = attempt == self._tries or monotonic() + pause >= ends_at
                if is_last or not failed.may_be_better:
                    raise failed.error from failed.error.__cause__
            self.pause(pause)
        raise AssertionError

    def _answer(self, access: Access, request: Request[Any], body: bytes, ends_at: float) -> Answer:
        """Make a try, and another one if SQS refused it for its time. Raises _Failed."""
        ahead = access.ahead
        try:
            response = self._exchange(access, request, body, ends_at)
            error = None if response.status < ERRORS_FROM else _refusal(request, response)
            if error and error.code in OF_THE_CLOCK and access.correct_clock(error.at, ahead):
                response = self._exchange(access, request, body, ends_at)
        except Unreached as error:
            raise _Failed(error) from None
        return _read(request, response)

    def _exchange(
        self, access: Access, request: Request[Any], body: bytes, ends_at: float
    ) -> Response:
        key = access.key(ends_at - monotonic())
        handle = self._handle(access, ends_at)
        try:
            handle.start(key, _headers(request, key, access.ahead), body)
            if handle.wait(ends_at, self._read_timeout):
                response = handle.result()
            elif monotonic() < ends_at:
                raise handle.silent()
            elif request.on_late is None:
                raise Unreached(OVERDUE)
            else:
                response = None
        except BaseException:
            self._drop(handle)
            raise
        if response is None:
            self._leave(handle, request)
            raise Unreached(OVERDUE)
        self._handles.append(handle)
        return response

    def _drop(self, handle: Handle) -> None:
        """Close a handle whose call has failed, on another thread if that may take long."""
        if not handle.is_slow:
            handle.close()
            return
        try:
            self._late.run(handle.close, 0.0)
        except Overdue:
            return
        except Full:
            handle.close()

    def _leave(self, handle: Handle, request: Request[Any]) -> None:
        """Let another thread wait for the answer of a call that is over its deadline."""
        on_late = request.on_late
        assert on_late is not None
        try:
            on_late(self._late.run(partial(self._finish, handle, request), 0.0, on_late))
        except Overdue:
            return
        except Full:
            handle.close()

    def _finish(self, handle: Handle, request: Request[Any]) -> Any:
        try:
            if not handle.wait(monotonic() + LATE, self._read_timeout):
                raise handle.silent()
            response = handle.result()
        finally:
            handle.close()
        return request.read(_read(request, response))

    def _handle(self, access: Access, ends_at: float) -> Handle:
        """A handle that no other call uses."""
        try:
            return self._handles.pop()
        except IndexError:
            return Handle(access.open(ends_at - monotonic()), USER_AGENT)

    def _own_access(self) -> Access:
        pid = os.getpid()
        if self._pid != pid:
            self._pid, self._access, self._handles = pid, None, []
        if self._access is None or self._access.hangs:
            self._access = access_for(self._options)
        return self._access


class _Failed(Exception):
    """A try has failed."""

    def __init__(self, error: SqsError, status: int | None = None) -> None:
        super().__init__(error)
        self.error = error
        self._status = status

    @property
    def may_be_better(self) -> bool:
        """Whether the driver tries again."""
        if self._status in TEMPORARY:
            return True
        return self.error.is_temporary and self.error.code not in {OVERDUE, HANGING, UNREADABLE}

    def longest_pause(self, attempt: int) -> float:
        """Seconds before the try after this one."""
        is_throttled = self.error.code in THROTTLED or self._status == 429
        first = FIRST_PAUSE_IF_THROTTLED if is_throttled else FIRST_PAUSE
        return min(first * 2.0 ** (attempt - 1), LONGEST_PAUSE)


def _has_attributes(request: Request[Any]) -> bool:
    """Whether a message of this request has attributes. The broker makes all other parameters."""
    messages = request.parameters.get("Entries") or (request.parameters,)
    return any(message.get("MessageAttributes") for message in messages)


def _encoded(request: Request[Any]) -> bytes:
    try:
        return encode(request.parameters)
    except (TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise SqsError.of(exc) from exc


def _headers(request: Request[Any], key: Key, ahead: float) -> list[str]:
    headers = [
        f"Content-Type: {CONTENT_TYPE}",
        f"X-Amz-Target: {TARGET}{request.action}",
        # SQS then returns the error codes of its older protocol, too.
        "x-amzn-query-mode: true",
        # Otherwise libcurl would wait for a 100 before it sends a long body.
        "Expect:",
    ]
    if key.token:
        headers.append(f"X-Amz-Security-Token: {key.token}")
    if ahead:
        # Otherwise libcurl signs the time of this machine.
        at = datetime.now(UTC) + timedelta(seconds=ahead)
        headers.append(f"X-Amz-Date: {at:%Y%m%dT%H%M%SZ}")
    return headers


def _read(request: Request[Any], response: Response) -> Answer:
    if response.status >= ERRORS_FROM:
        raise _Failed(_refusal(request, response), response.status)
    try:
        return Answer(decode(response.body), response.headers.get("date"))
    except Unreached as error:
        raise _Failed(error) from None


def _refusal(request: Request[Any], response: Response) -> SqsError:
    return refusal(request.action, response.status, response.headers, response.body)
