"""The shortcut past FastAPI's layers: what it answers is what FastAPI would answer."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.api.application import application
from app.api.front import Front
from sqs_broker.testing import FakeSqs
from tests.unit.api_service import API_KEYS, KEYS, running
from tests.unit.asgi import Answer, Client
from tests.unit.test_api_sending import SNAKE, USER


@dataclass(frozen=True)
class Request:
    """A request as a client sends it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    async def answer(self, app: object) -> Answer:
        id_ = ("X-Request-Id", "r-1")
        answer = await Client(app).request(
            self.method, self.target, self.body, headers=[*self.headers, id_]
        )
        if self.target.startswith("/produce"):
            # Without an Idempotency-Key it is random.
            answer.body = re.sub(rb"[0-9a-f]{40}", b"ID", answer.body)
        return answer


#: The routes that read a body, and paths that only look like theirs.
SENDING = (
    "/registrations", "/registrations/batch", "/produce", "/registrations/", "/produce/",
    "//registrations", "/Registrations", "/registrations%2Fbatch", "/%72egistrations",
)  # fmt: skip
OTHERS = ("/users", "/queues", "/count", "/healthz", "/readyz", "/docs", "/openapi.json", "/none")
METHODS = ("POST", "GET", "HEAD", "PUT", "OPTIONS")
HEADERS = {
    "Content-Type": ("application/json", "application/json; charset=utf-8", "application/x-ndjson",
                     "Application/JSON", "text/plain", "application/json; charset=latin-1", ""),
    "Content-Encoding": ("identity", "gzip"),
    "Idempotency-Key": ("k", '"k"', '""', "k" * 129, "ü"),
    "X-API-Key": (KEYS["register"], "wrong"),
    "traceparent": ("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "x"),
    "Expect": ("100-continue",),
}  # fmt: skip
HEADER = st.sampled_from([(name, value) for name, values in HEADERS.items() for value in values])
FIELDS = st.dictionaries(
    st.sampled_from([*USER, *SNAKE, "money", "index", "input", "more"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.just({"nickname": "kim"}),
    max_size=4,
)  # fmt: skip
DATA = st.sampled_from([USER, SNAKE, {"input": 1}]) | FIELDS
BODY = (
    st.builds(lambda data: json.dumps(data).encode(), DATA)
    | st.builds(lambda a, b: f"{json.dumps(a)}\n{json.dumps(b)}".encode(), DATA, DATA)
    | st.builds(lambda data: json.dumps(data).encode(), st.lists(DATA, max_size=3))
    | st.sampled_from([b"", b"{", b"[]", b"\xff", b"null", b"[" * 100])
)
#: The key that may do everything comes first, so that most requests are admitted.
GIVEN = st.builds(
    lambda key, more: (("X-API-Key", key), *more),
    st.sampled_from([KEYS["all"], KEYS["all"], KEYS["all"], "wrong"]),
    st.lists(HEADER, max_size=4),
)
QUERY = st.sampled_from(["", "?stockId=s1", "?wait=x"])


def requests(methods: Sequence[str], paths: Sequence[str]) -> st.SearchStrategy[Request]:
    targets = st.builds(str.__add__, st.sampled_from(paths), QUERY)
    return st.builds(Request, st.sampled_from(methods), targets, GIVEN, BODY)


def accepted(target: str, kind: str, content: object) -> Request:
    headers = (("X-API-Key", KEYS["all"]), ("Content-Type", kind))
    return Request("POST", target, headers, json.dumps(content).encode())


def test_a_request_has_the_answer_that_it_has_without_the_shortcut(fake: FakeSqs) -> None:
    seen: set[tuple[str, int]] = set()

    @settings(max_examples=200)
    @given(requests(["POST"], SENDING) | requests(METHODS, SENDING + OTHERS))
    @example(accepted("/registrations", "application/json", USER))
    @example(accepted("/registrations/batch", "application/x-ndjson", USER))
    @example(accepted("/registrations/batch", "application/json", [USER, {}]))
    @example(accepted("/produce", "application/json", {"input": 1}))
    def holds(request: Request) -> None:
        with_it = runner.run(request.answer(made.app))
        assert with_it == runner.run(request.answer(without_it))
        seen.add((request.target.partition("?")[0], with_it.status))

    with asyncio.Runner() as runner:
        api = running(fake, keys=API_KEYS)
        made = runner.run(api.__aenter__())
        _, inner = application(made.service, send_timeout=20.0)
        without_it = Front(inner, lambda: False)
        holds()
        runner.run(api.__aexit__(None, None, None))
    assert {("/registrations", 202), ("/registrations/batch", 202), ("/produce", 202)} <= seen
