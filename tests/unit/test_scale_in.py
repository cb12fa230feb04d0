"""Protection from scale-in: asked for while a long task runs, given up after it, tried again."""

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.scale_in import LONG, RENEWED_AFTER, ProtectionError, ScaleInObserver, ask_agent
from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.outcomes import Done, Succeeded
from tests.unit.conftest import HEADERS, MakeDelivery


class Ecs:
    """What was asked for, and the time."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.now = 1000.0
        self.refuses = False
        self.observer = ScaleInObserver(self.protect, lambda: self.now)

    def protect(self, is_protected: bool) -> None:
        if self.refuses:
            raise ProtectionError("the agent answers 500")
        self.asked.append(is_protected)

    def look_after(self, seconds: float) -> list[bool]:
        self.now += seconds
        self.observer.look()
        return self.asked


@pytest.fixture
def ecs() -> Ecs:
    return Ecs()


@pytest.fixture
def message(make_delivery: MakeDelivery) -> Facts:
    return facts_of(make_delivery(), HEADERS)


def end(ecs: Ecs, message: Facts) -> None:
    ecs.observer.ended(message, Succeeded(), Done())


def test_a_worker_whose_task_has_run_for_a_while_is_protected_until_it_ends(
    ecs: Ecs, message: Facts
) -> None:
    ecs.observer.started(message)
    assert ecs.look_after(LONG) == [True]
    end(ecs, message)
    assert ecs.look_after(1) == [True, False]


def test_a_worker_of_short_tasks_is_never_protected(ecs: Ecs, make_delivery: MakeDelivery) -> None:
    for _ in range(10):
        message = facts_of(make_delivery(), HEADERS)
        ecs.observer.started(message)
        assert ecs.look_after(LONG - 0.1) == []
        end(ecs, message)


def test_the_last_of_several_tasks_ends_the_protection(
    ecs: Ecs, make_delivery: MakeDelivery
) -> None:
    messages = [facts_of(make_delivery(), HEADERS) for _ in range(2)]
    for message in messages:
        ecs.observer.started(message)
    ecs.look_after(LONG)
    end(ecs, messages[0])
    assert ecs.look_after(1) == [True]
    end(ecs, messages[1])
    assert ecs.look_after(1) == [True, False]


def test_a_lost_lease_ends_the_protection(ecs: Ecs, message: Facts) -> None:
    ecs.observer.started(message)
    ecs.look_after(LONG)
    ecs.observer.lost(message, "expired")
    assert ecs.look_after(1) == [True, False]


def test_the_protection_is_renewed_long_before_it_ends(ecs: Ecs, message: Facts) -> None:
    ecs.observer.started(message)
    ecs.look_after(LONG)
    assert ecs.look_after(RENEWED_AFTER - 1) == [True]
    assert ecs.look_after(1) == [True, True]


def test_what_ecs_refuses_is_tried_again_and_logged_once_a_minute(
    ecs: Ecs, message: Facts, caplog: pytest.LogCaptureFixture
) -> None:
    ecs.refuses = True
    ecs.observer.started(message)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert ecs.look_after(LONG) == []
    (record,) = caplog.records
    assert record.__dict__["event"] == "scale_in.failed"
    ecs.refuses = False
    assert ecs.look_after(1) == [True]


# The agent


class Agent(http.server.BaseHTTPRequestHandler):
    """ECS's agent: an address of this process, and what it answers."""

    heard: list[tuple[str, Any]]
    status: int
    answer: dict[str, Any]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, json.loads(body)))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(json.dumps(self.answer).encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Agent]]:
    class Own(Agent):
        heard: list[tuple[str, Any]] = []  # noqa: RUF012  # a class of this test's own
        status = 200
        answer: dict[str, Any] = {}  # noqa: RUF012

    with http.server.HTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("ECS_AGENT_URI", f"http://127.0.0.1:{server.server_port}/api/1")
        # As in a network whose proxy cannot reach the agent.
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        try:
            yield Own
        finally:
            server.shutdown()
            thread.join()


def test_the_agent_is_asked_as_aws_describes(agent: type[Agent]) -> None:
    agent.answer = {"protection": {"ProtectionEnabled": True, "TaskArn": "arn:aws:ecs:…"}}
    ask_agent(True)
    agent.answer = {"protection": {"ProtectionEnabled": False}}
    ask_agent(False)
    path = "/api/1/task-protection/v1/state"
    assert agent.heard == [
        (path, {"ProtectionEnabled": True, "ExpiresInMinutes": 30}),
        (path, {"ProtectionEnabled": False}),
    ]


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (400, {"error": {"Code": "AccessDeniedException"}}),
        (200, {"failure": {"Reason": "DEPLOYMENT_BLOCKED"}}),
        (200, {"protection": {"ProtectionEnabled": False}}),
    ],
)
def test_a_refusal_of_the_agent_is_seen(
    agent: type[Agent], status: int, answer: dict[str, Any]
) -> None:
    agent.status, agent.answer = status, answer
    with pytest.raises(ProtectionError):
        ask_agent(True)


def test_a_machine_without_an_agent_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECS_AGENT_URI", raising=False)
    with pytest.raises(ProtectionError, match="ECS_AGENT_URI"):
        ask_agent(True)
    monkeypatch.setenv("ECS_AGENT_URI", "http://127.0.0.1:9/api/1")
    with pytest.raises(ProtectionError):
        ask_agent(True)
