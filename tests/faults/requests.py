"""Requests to the HTTP API that are broken in some way, and clients that behave badly, by seed."""

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get",
           "PRI", "G E T", "", "\x00", "M" * 300]  # fmt: skip
PATHS = ["/registrations", "/registrations/batch", "/registrations/x", "/users", "/users/s/u",
         "/queues", "/produce", "/count", "/healthz", "/readyz", "/docs", "/openapi.json",
         "/docs/static/swagger-ui.css", "/docs/static/../../../../etc/passwd", "//", "/%", "/%00",
         "/users/%ff/%fe", "/users?stockId=%ff&after=%80", "/registrations/x?wait=0&wait=61",
         "/users/a%2fb/c%2Fd", "*", "http://x/count", "/\x7f", "/" + "a" * 9_000]  # fmt: skip
TYPES = ["application/json", "application/x-ndjson", "application/json; charset=utf-16",
         "text/plain", "", "application/json;;;=", "APPLICATION/JSON", "\xff"]  # fmt: skip
VERSIONS = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9", "HTP/1.1", ""]
LENGTHS = ["-1", "x", "1e3", "0x10", "99999999999999999999999", "5, 5", "", "+3", "1000000000"]
USER = {"stockId": "fuzz", "userId": "u1", "userInfo": {"nickname": "kim"}}

#: Seconds that a client waits for an answer: some of its requests are such that none comes.
PATIENCE = 0.3
#: Of a slow client, between two bytes.
PAUSE = 0.01

Answers = Counter[str]


async def attack(port: int, key: str, requests: int, seed: int, clients: int = 40) -> Answers:
    """Send requests, and count the answers by the first line's status; "none" without one."""
    answers: Answers = Counter()
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            # A number gives the same request again, whichever client sends it.
            await _one(port, _Request(random.Random(f"{seed}:{number}"), key), answers)

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def _one(port: int, request: "_Request", answers: Answers) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if request.resets:
        # The close ends the connection at once, whatever is on its way.
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    status = "cut off"
    with suppress(OSError):
        await request.send(writer)
        status = _status(await _answer(reader))
    answers[status] += 1
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.readline()
    except (TimeoutError, ValueError):
        return b""


def _status(line: bytes) -> str:
    if not line:
        return "none"
    version, _, rest = line.partition(b" ")
    assert version == b"HTTP/1.1", line
    return rest[:3].decode()


class _Request:
    """One request, and how it is sent."""

    def __init__(self, chance: random.Random, key: str) -> None:
        self._chance = chance
        self._key = key
        self.resets = chance.random() < 0.1
        self._data = self._pick(
            (10, self._good),
            (50, self._well_formed),
            (15, self._broken_head),
            (10, self._broken_chunks),
            (5, self._noise),
            (4, self._large_head),
            (1, self._large_body),
            (5, lambda: self._well_formed() + self._well_formed()),
        )
        self._half_closes = chance.random() < 0.1
        self._is_slow = chance.random() < 0.01
        if chance.random() < 0.1:
            self._data = self._data[: chance.randrange(len(self._data) + 1)]

    async def send(self, writer: asyncio.StreamWriter) -> None:
        """Send it. Raises OSError."""
        if self._is_slow:
            for byte in self._data[:40]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(PAUSE)
        else:
            writer.write(self._data)
            with suppress(TimeoutError):
                # A server that refuses a large body does not read it.
                async with asyncio.timeout(PATIENCE):
                    await writer.drain()
        if self._half_closes:
            writer.write_eof()

    def _pick(self, *weighted: tuple[int, Callable[[], bytes]]) -> bytes:
        weights = [weight for weight, _ in weighted]
        (chosen,) = self._chance.choices([make for _, make in weighted], weights)
        return chosen()

    def _well_formed(self) -> bytes:
        body = self._body()
        method = self._chance.choice(["POST", "POST", "GET", *METHODS[:9]])
        lines = [f"{method} {self._chance.choice(PATHS[:12])} HTTP/1.1", "Host: x"]
        lines += [f"X-API-Key: {self._key}"] if self._chance.random() < 0.9 else []
        lines += self._headers()
        lines += [f"Content-Length: {len(body)}"]
        return _head(lines) + body

    def _good(self) -> bytes:
        user = USER | {"userId": self._text(9) + "u"}
        body = json.dumps(user).encode()
        path, kind = self._chance.choice([*zip(PATHS, TYPES, strict=False)][:2])
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"X-API-Key: {self._key}",
                 f"Content-Type: {kind}", f"Content-Length: {len(body)}"]  # fmt: skip
        return _head(lines) + body

    def _headers(self) -> list[str]:
        chance = self._chance
        some = [
            f"Content-Type: {chance.choice(TYPES[:1] * 6 + TYPES)}",
            f"Idempotency-Key: {self._text(140)}",
            f"Content-Encoding: {chance.choice(['gzip', 'identity', 'br'])}",
            f"X-Request-Id: {self._text(200)}",
            f"traceparent: 00-{'a' * 32}-{'b' * 16}-01",
            f"Expect: {chance.choice(['100-continue', 'x'])}",
            f"Connection: {chance.choice(['close', 'keep-alive', 'upgrade', 'x'])}",
            "Upgrade: websocket",
            f"Accept: {self._text(20)}",
            f"Origin: {self._text(30)}",
        ]
        return [some[0], *chance.sample(some[1:], chance.randrange(4))]

    def _broken_head(self) -> bytes:
        chance = self._chance
        first = (chance.choice(choices) for choices in (METHODS, PATHS, VERSIONS))
        lines = [" ".join(first), *self._headers()]
        lines += chance.sample(
            ["Content-Length: " + chance.choice(LENGTHS), "Content-Length: 3",
             "Transfer-Encoding: chunked", "Transfer-Encoding: x, chunked", "no colon", ": empty",
             " folded: line", "a\x00b: c", "Host: a\r\nHost: b", "X: " + "\xff" * 50,
             f"X-API-Key: {self._key}"],
            chance.randrange(5),
        )  # fmt: skip
        return _head(lines, chance.choice(["\r\n", "\r\n", "\n", "\r"])) + self._body()

    def _broken_chunks(self) -> bytes:
        chance = self._chance
        path, kind = chance.choice(PATHS[:2]), chance.choice(TYPES[:2])
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"X-API-Key: {self._key}",
                 f"Content-Type: {kind}", "Transfer-Encoding: chunked"]  # fmt: skip
        body = b""
        for _ in range(chance.randrange(6)):
            part = self._body()
            size = chance.choice([f"{len(part):x}"] * 8 + ["-1", "g", "f" * 20, "", "1"])
            body += f"{size}{chance.choice(['', '', ';a=b'])}\r\n".encode() + part + b"\r\n"
        return _head(lines) + body + chance.choice([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b""])

    def _noise(self) -> bytes:
        return self._chance.randbytes(self._chance.randrange(1, 400))

    def _large_head(self) -> bytes:
        size = self._chance.choice([20_000, 40_000, 200_000])
        one = ["X-A: " + "a" * size]
        many = [f"X-{n}: {n}" for n in range(size // 100)]
        return _head(["GET /count HTTP/1.1", "Host: x", *self._chance.choice([one, many])])

    def _large_body(self) -> bytes:
        path, kind = self._chance.choice([(PATHS[0], TYPES[0]), (PATHS[1], TYPES[1])])
        body = self._chance.choice([b'"' + b"a" * (1 << 20) + b'"', b"[" * 500_000, b"\n" * 30_000])
        lines = [f"POST {path} HTTP/1.1", "Host: x", f"X-API-Key: {self._key}",
                 f"Content-Type: {kind}", f"Content-Length: {len(body)}"]  # fmt: skip
        return _head(lines) + body

    def _body(self) -> bytes:
        chance = self._chance
        text = json.dumps(
            chance.choice(
                [
                    USER,
                    USER | {"userId": self._text(9)},
                    USER | {"index": chance.choice([-1, 2**70])},
                    USER | {"userInfo": {"nickname": "\ud800"}},
                    [USER] * chance.randrange(4),
                    {"input": chance.choice([1, True, "x", float("nan")])},
                    chance.choice([{}, None, [], 7]),
                ]
            )
        )
        body = text.encode("utf-8", "surrogatepass")
        if chance.random() < 0.2:
            at = chance.randrange(len(body))
            body = (
                body[:at]
                + chance.choice([b"", b"\x00", b"\xff", b"\n", b"}", b"["])
                + body[at + 1 :]
            )
        return chance.choice([body, body, body, b"", body + b"\n" + body, b"[" * 3_000])

    def _text(self, longest: int) -> str:
        letters = "ab 1\"'\\%/\t\x7fü€"
        return "".join(self._chance.choices(letters, k=self._chance.randrange(longest)))


def _head(lines: list[str], end: str = "\r\n") -> bytes:
    return (end.join(lines) + end * 2).encode("utf-8", "surrogatepass")
