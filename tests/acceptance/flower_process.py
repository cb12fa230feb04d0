"""Flower as it is run: the Procfile's command, in a process of its own."""

import json
import re
import sys
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

from devstack import ports
from tests.acceptance.worker import Program

START_SECONDS = 60
ANSWER_SECONDS = 30
LOGIN = "kim:hunter2-7d1f"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection to the login is an answer here."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True)
class Answer:
    """What Flower said."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """The text, read as JSON."""
        return json.loads(self.text)


class Flower(Program):
    """Flower, on a port of its own."""

    name = "flower"

    def __init__(
        self, environment: Mapping[str, str], directory: Path, port: int, *arguments: str
    ) -> None:
        self.url = f"http://{ports.HOST}:{port}"
        self._port = port
        super().__init__(environment, directory, f"--port={port}", *arguments)

    def wait_until_listening(self) -> None:
        """Returns once it takes requests."""
        self.wait_for(lambda: ports.is_listening(self._port), START_SECONDS, "Flower, listening")

    def wait_until_it_sees(self, *names: str) -> None:
        """Returns once it hears these workers: what it has from an earlier run does not count."""
        before = self._heartbeats()

        def sees() -> bool:
            heard = self._heartbeats()
            return all(heard.get(name, 0) > before.get(name, 0) for name in names)

        self.wait_for(sees, START_SECONDS, f"Flower that sees {', '.join(names)}")

    def _heartbeats(self) -> dict[str, int]:
        listed = self.get("/workers?json=1").json["data"]
        return {worker["hostname"]: worker.get("worker-heartbeat", 0) for worker in listed}

    def get(self, path: str, login: str | None = LOGIN) -> Answer:
        """Ask for a page."""
        return self._ask(path, login, None)

    def post(self, path: str, login: str | None = LOGIN, **fields: str) -> Answer:
        """Send a form."""
        return self._ask(path, login, urlencode(fields).encode())

    def _ask(self, path: str, login: str | None, body: bytes | None) -> Answer:
        request = urllib.request.Request(self.url + path, body)
        if login is not None:
            request.add_header("Authorization", f"Basic {b64encode(login.encode()).decode()}")
        try:
            answer: HTTPResponse = _opener.open(request, timeout=ANSWER_SECONDS)
        except HTTPError as refusal:
            with refusal:
                return Answer(refusal.code, refusal.read().decode())
        with answer:
            return Answer(answer.status, answer.read().decode())


@contextmanager
def flowering(environment: Mapping[str, str], home: Path, *arguments: str) -> Iterator[Flower]:
    """Flower with a login, taking requests, until the end of the block."""
    with started(environment | {"FLOWER_BASIC_AUTH": LOGIN}, home, *arguments) as flower:
        flower.wait_until_listening()
        yield flower


@contextmanager
def started(environment: Mapping[str, str], home: Path, *arguments: str) -> Iterator[Flower]:
    """Flower, just started, until the end of the block."""
    port = ports.preferred_or_any(None)
    flower = Flower(environment, home / f"flower-{uuid.uuid4().hex[:8]}", port, *arguments)
    try:
        yield flower
    finally:
        flower.kill()
        # pytest shows it where the test failed.
        sys.stdout.write(f"--- {flower.log}\n{flower.log_text()}")


# Forms that are sent without the page


def answer_of(flower: Flower, path: str, headers: dict[str, str], **fields: str) -> Answer:
    """The answer to a form that is sent without its page."""
    request = urllib.request.Request(flower.url + path, urlencode(fields).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return Answer(answer.status, answer.read().decode())
    except HTTPError as refusal:
        with refusal:
            return Answer(refusal.code, refusal.read().decode())


def status_of(flower: Flower, path: str, headers: dict[str, str], **fields: str) -> int:
    """The status of a form that is sent without its page."""
    return answer_of(flower, path, headers, **fields).status


def login() -> dict[str, str]:
    """The header of a login."""
    return {"Authorization": f"Basic {b64encode(LOGIN.encode()).decode()}"}


def with_token(flower: Flower, page: str) -> tuple[dict[str, str], dict[str, str]]:
    """The headers and fields of a form of a page."""
    request = urllib.request.Request(flower.url + page, headers=login())
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        cookie = str(answer.headers["Set-Cookie"]).partition(";")[0]
        found = re.search(r'name="_xsrf" value="([^"]+)"', answer.read().decode())
    assert found is not None
    return login() | {"Cookie": cookie}, {"_xsrf": found[1]}
