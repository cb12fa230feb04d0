"""One connection to SQS through libcurl, which signs the calls (SigV4). No other file knows pycurl.

https://curl.se/libcurl/c/CURLOPT_AWS_SIGV4.html
"""

import ctypes
import os
import select
from collections.abc import Sequence
from math import ceil
from time import monotonic
from typing import NamedTuple
from weakref import WeakSet

import pycurl

from sqs_broker.sqs.access import Key, Route
from sqs_broker.sqs.driver import CONNECT_TIMEOUT
from sqs_broker.sqs.errors import Unreached
from sqs_broker.sqs.wire import UNREADABLE, Headers, headers_of

#: The first libcurl that can be used. Older ones do not sign headers in the right order, or send a
#: date that they were given twice (its commits cf3e3d93d1 and b137634ba3).
LEAST_VERSION = (8, 10, 0)

VERSION: str = pycurl.version_info()[1]

#: What the causes of a failed transfer are called, as botocore calls them. Any other one is a
#: HTTPClientError.
CODES = {
    pycurl.E_COULDNT_RESOLVE_HOST: "EndpointConnectionError",
    pycurl.E_COULDNT_CONNECT: "EndpointConnectionError",
    pycurl.E_COULDNT_RESOLVE_PROXY: "ProxyConnectionError",
    pycurl.E_SSL_CONNECT_ERROR: "SSLError",
    pycurl.E_PEER_FAILED_VERIFICATION: "SSLError",
    pycurl.E_SSL_CACERT_BADFILE: "SSLError",
    pycurl.E_OPERATION_TIMEDOUT: "ConnectTimeoutError",
    pycurl.E_GOT_NOTHING: "ConnectionClosedError",
    pycurl.E_RECV_ERROR: "ConnectionClosedError",
    pycurl.E_SEND_ERROR: "ConnectionClosedError",
    pycurl.E_PARTIAL_FILE: UNREADABLE,
}

#: The codes of a call that was not made, whatever else is known of it.
BEFORE_THE_CALL = frozenset(
    {"EndpointConnectionError", "ProxyConnectionError", "SSLError", "ConnectTimeoutError"}
)


#: CURLOPT_QUICK_EXIT of curl/curl.h, since libcurl 7.87. pycurl has no name for it.
QUICK_EXIT = 322


class Response(NamedTuple):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes


class Handle:
    """An easy handle of libcurl, which keeps its connection between calls, and the multi handle
    that runs it. For one call at a time, from any thread. A forked child must not use it.

    Not `perform` of the easy handle: that would run no signal handler of Python, such as that of
    Celery's soft time limit, and could not leave a call whose deadline is over.
    """

    def __init__(self, route: Route, user_agent: str) -> None:
        self._route = route
        #: What the easy handle has.
        self._key: Key | None = None
        self._headers: Sequence[str] = ()
        self._lines: list[bytes] = []
        self._parts: list[bytes] = []
        self._poll = select.poll()
        #: When libcurl wants to be called at the latest.
        self._due: float | None = None
        self._is_running = 0
        self._easy = _new_easy(route, user_agent)
        # Functions written in C: an exception that a signal handler raises in one would be lost.
        self._easy.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        self._easy.setopt(pycurl.WRITEFUNCTION, self._parts.append)
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._wake)
        _all.add(self)

    def start(self, key: Key, headers: Sequence[str], body: bytes) -> None:
        """Begin a call. `headers` must not contain its signature."""
        self._lines.clear()
        self._parts.clear()
        try:
            self._sign_with(key)
            self._set_headers(headers)
            self._easy.setopt(pycurl.POSTFIELDS, body)
            self._multi.add_handle(self._easy)
        except (pycurl.error, ValueError, TypeError) as exc:
            # Without the text, which may have the value.
            raise Unreached(type(exc).__name__) from None
        self._is_running = 1
        self._act(pycurl.SOCKET_TIMEOUT, 0)

    def wait(self, ends_at: float, silence: float) -> bool:
        """Wait until the call has ended. False if it has not at `ends_at`, by the monotonic clock,
        or if nothing happened for `silence` seconds."""
        heard_at = monotonic()
        while self._is_running:
            now, last = monotonic(), min(ends_at, heard_at + silence)
            if now >= last:
                return False
            if self._due is not None and self._due <= now:
                self._due = None
                self._act(pycurl.SOCKET_TIMEOUT, 0)
                continue
            until = last if self._due is None else min(last, self._due)
            for fd, events in self._poll.poll(ceil((until - now) * 1000)):
                heard_at = monotonic()
                self._act(fd, _bits(events))
        return True

    def result(self) -> Response:
        """The answer of the call that has ended. Raises Unreached."""
        failed = self._multi.info_read()[2]
        self._multi.remove_handle(self._easy)
        if failed:
            raise self._unreached(*failed[0][1:])
        headers, is_complete = headers_of(self._lines)
        if not is_complete:
            raise Unreached(UNREADABLE, "The answer cannot be read: it was cut off")
        status = self._easy.getinfo(pycurl.RESPONSE_CODE)
        return Response(status, headers, b"".join(self._parts))

    def silent(self) -> Unreached:
        """The error of a call that has not ended."""
        code = "ReadTimeoutError" if self._has_sent() else "ConnectTimeoutError"
        return Unreached(code, f'No answer from "{self._route.url}" in time')

    @property
    def is_slow(self) -> bool:
        """Whether `close` may take long: libcurl waits for the answer of DNS if it has asked."""
        return not self._easy.getinfo(pycurl.NAMELOOKUP_TIME)

    def close(self) -> None:
        """Close the connection, and with it an open call."""
        if self._is_running:
            self._multi.remove_handle(self._easy)
        self._easy.close()
        self._multi.close()

    def disown(self) -> None:
        """In a forked child: never free the handles. Else libcurl would end the parent's TLS
        connection."""
        for each in (self._easy, self._multi):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))

    def _sign_with(self, key: Key) -> None:
        if key != self._key:
            self._easy.setopt(pycurl.USERNAME, key.id)
            self._easy.setopt(pycurl.PASSWORD, key.secret)
            self._key = key

    def _set_headers(self, headers: Sequence[str]) -> None:
        if headers != self._headers:
            if not all(map(str.isprintable, headers)):
                raise ValueError
            self._easy.setopt(pycurl.HTTPHEADER, headers)
            self._headers = headers

    def _has_sent(self) -> bool:
        # Also if libcurl then began again on a new connection, because the old one was closed.
        return bool(self._easy.getinfo(pycurl.REQUEST_SIZE))

    def _unreached(self, number: int, text: str) -> Unreached:
        code = CODES.get(number, "HTTPClientError")
        if self._easy.getinfo(pycurl.HTTP_CONNECTCODE) >= 300:
            code = "ProxyConnectionError"
        elif code in BEFORE_THE_CALL and self._has_sent():
            code = "ConnectionClosedError"
        elif self._route.proxy and code == "EndpointConnectionError":
            code = "ProxyConnectionError"
        return Unreached(code, f'{text}. The endpoint URL is "{self._route.url}"')

    # What libcurl asks for

    def _act(self, fd: int, bits: int) -> None:
        try:
            self._is_running = self._multi.socket_action(fd, bits)[1]
        except pycurl.error as exc:
            raise Unreached("HTTPClientError", str(exc)) from exc

    def _watch(self, what: int, fd: int, *_: object) -> None:
        if what == pycurl.POLL_REMOVE:
            self._poll.unregister(fd)
        else:
            reads = select.POLLIN if what & pycurl.POLL_IN else 0
            self._poll.register(fd, reads | (select.POLLOUT if what & pycurl.POLL_OUT else 0))

    def _wake(self, milliseconds: int) -> None:
        self._due = None if milliseconds < 0 else monotonic() + milliseconds / 1000


def missing() -> str | None:
    """What the libcurl of this machine lacks; None if it can be used."""
    if not hasattr(pycurl, "AWS_SIGV4"):
        return "pycurl without AWS_SIGV4"
    if tuple(int(part) for part in VERSION.split("-")[0].split(".")) < LEAST_VERSION:
        return f"libcurl {VERSION}, older than {'.'.join(map(str, LEAST_VERSION))}"
    if not pycurl.version_info()[4] & pycurl.VERSION_ASYNCHDNS:
        return "libcurl without AsynchDNS, whose calls have no deadline while DNS is silent"
    return None if hasattr(select, "poll") else "no poll()"


def _new_easy(route: Route, user_agent: str) -> pycurl.Curl:
    easy = pycurl.Curl()
    easy.setopt(pycurl.URL, route.url)
    easy.setopt(pycurl.AWS_SIGV4, f"aws:amz:{route.region}:sqs")
    easy.setopt(pycurl.USERAGENT, user_agent)
    easy.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
    easy.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
    # It uses no signals, which belong to the main thread.
    easy.setopt(pycurl.NOSIGNAL, 1)
    easy.setopt(pycurl.CONNECTTIMEOUT_MS, round(CONNECT_TIMEOUT * 1000))
    easy.setopt(pycurl.TCP_KEEPALIVE, 1)
    # Each new connection asks for the address again: SQS's changes.
    easy.setopt(pycurl.DNS_CACHE_TIMEOUT, 0)
    # The end of a call does not wait for an answer of DNS, before libcurl 8.20 (see `is_slow`).
    easy.setopt(QUICK_EXIT, 1)
    # An empty one, so that libcurl does not read the environment itself.
    easy.setopt(pycurl.PROXY, route.proxy or "")
    easy.setopt(pycurl.NOPROXY, "")
    if route.ca is not None:
        _trust(easy, route.ca)
    return easy


def _trust(easy: pycurl.Curl, ca: str) -> None:
    is_directory = os.path.isdir(ca)
    easy.setopt(pycurl.CAPATH if is_directory else pycurl.CAINFO, ca)
    easy.setopt(pycurl.PROXY_CAPATH if is_directory else pycurl.PROXY_CAINFO, ca)


def _bits(events: int) -> int:
    bits = pycurl.CSELECT_IN if events & select.POLLIN else 0
    if events & select.POLLOUT:
        bits |= pycurl.CSELECT_OUT
    if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
        bits |= pycurl.CSELECT_ERR
    return bits


_all: WeakSet[Handle] = WeakSet()


def _disown_all() -> None:
    for handle in _all:
        handle.disown()
    _all.clear()


os.register_at_fork(after_in_child=_disown_all)
