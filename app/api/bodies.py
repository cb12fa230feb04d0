"""Reads the bodies of requests, within limits of size and time."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager

from starlette.requests import ClientDisconnect, Request

from app.api.deadlines import Deadlines
from app.api.headers import header
from app.api.problems import Kind, Problem, too_large

JSON, NDJSON = "application/json", "application/x-ndjson"

MIB = 1 << 20

#: Most bytes of a body that is read as a whole, and of a line.
MOST_BODY = MOST_LINE = MIB

#: Most bytes of a body that is read by lines.
MOST_LINES = 64 * MIB

#: Most lines of a body, also empty ones: each takes time.
MOST_COUNT = 20_000

#: Seconds in which a body that is read as a whole must arrive, and in which each part of one that
#: is read by lines must arrive.
BODY_SECONDS = 30.0

#: Seconds in which a body that is read by lines must arrive.
LINES_SECONDS = 300.0


def check_media_type(request: Request, *accepted: str) -> str:
    """The media type of the body, which must be one of these, in UTF-8 and not compressed. Raises
    Problem."""
    given, *parameters = (header(request, b"content-type") or "").lower().split(";")
    kind = given.strip()
    charsets = [p.strip().removeprefix("charset=").strip('"') for p in parameters if "charset" in p]
    if (
        kind not in accepted
        or any(charset not in ("utf-8", "utf8") for charset in charsets)
        or (header(request, b"content-encoding") or "identity").lower() != "identity"
    ):
        listed = " or ".join(accepted)
        raise Problem(Kind.MEDIA_TYPE, f"Send {listed}, in UTF-8 and without a Content-Encoding.")
    return kind


class Bodies:
    """Reads the bodies of requests. For one event loop. All methods raise Problem."""

    def __init__(self, seconds: float = BODY_SECONDS, lines_seconds: float = LINES_SECONDS) -> None:
        """A body that is read as a whole, and each part of one that is read by lines, must arrive
        within `seconds`, and one that is read by lines within `lines_seconds`."""
        self._parts = Deadlines(seconds)
        self._all_lines = Deadlines(lines_seconds)

    async def whole(self, request: Request) -> bytes:
        """The body, at most MOST_BODY bytes."""
        _check_length(request, MOST_BODY)
        body, more = bytearray(), True
        try:
            # Not `_in_time`: a generator for each request takes as long as the body.
            with self._parts.limit():
                while more:
                    part, more = await _next(request)
                    body += part
                    if len(body) > MOST_BODY:
                        raise _over(MOST_BODY)
        except TimeoutError:
            raise _too_slow() from None
        return bytes(body)

    def all_lines(self) -> AbstractContextManager[None]:
        """Limits the time of the block, which reads the lines of a body and handles them."""
        return _in_time(self._all_lines)

    async def lines(self, request: Request) -> AsyncIterator[bytes | None]:
        """The lines of the body that are not empty; None in place of one of more than MOST_LINE
        bytes. At most one line is kept. Raises Problem at the byte after MOST_LINES, and at the
        line after MOST_COUNT."""
        _check_length(request, MOST_LINES)
        total = count = 0
        line, is_long = bytearray(), False
        more = True
        while more:
            with _in_time(self._parts):
                chunk, more = await _next(request)
            total += len(chunk)
            if total > MOST_LINES:
                raise _over(MOST_LINES)
            count += chunk.count(b"\n")
            if count > MOST_COUNT:
                raise too_large(f"The body may have at most {MOST_COUNT} lines.")
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                if is_long or len(line) + len(end) > MOST_LINE:
                    yield None
                elif text := bytes(line + end).strip():
                    yield text
                line.clear()
                is_long = False
            # What cannot become a line is not kept.
            is_long = is_long or len(line) + len(rest) > MOST_LINE
            line += b"" if is_long else rest
        if is_long:
            yield None
        elif text := bytes(line).strip():
            yield text


async def _next(request: Request) -> tuple[bytes, bool]:
    """The next part of the body, and whether more follow."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


@contextmanager
def _in_time(deadlines: Deadlines) -> Iterator[None]:
    try:
        with deadlines.limit():
            yield
    except TimeoutError:
        raise _too_slow() from None


def _too_slow() -> Problem:
    return Problem(
        Kind.TIMEOUT, "The body did not arrive in time.", headers={"Connection": "close"}
    )


def _check_length(request: Request, most: int) -> None:
    # The server refuses a request whose Content-Length is no number.
    if int(header(request, b"content-length") or "0") > most:
        raise _over(most)


def _over(most: int) -> Problem:
    return too_large(f"The body may have at most {most // MIB} MiB.")
