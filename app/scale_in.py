"""Asks ECS not to stop this task while it works, as an observer of the worker's messages.

ECS chooses the tasks that it stops when a service is scaled in or deployed. A worker has 90 s to
end what it runs then. A task that takes longer would be ended and begin again elsewhere. So while
one runs, the worker asks ECS's agent for protection from scale-in:
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-scale-in-protection-endpoint.html
"""

import json
import logging
import threading
from collections.abc import Callable
from functools import cached_property
from time import monotonic
from typing import Any

from app.settings import get_ecs_settings
from sqs_broker.errors import label
from sqs_broker.machine.seldom import Seldom
from sqs_broker.observers.observer import Observer
from sqs_broker.rules.facts import Facts
from sqs_broker.rules.outcomes import Happened, Outcome

logger = logging.getLogger(__name__)

#: Seconds that a task must have run. Short tasks end in the time that a stop gives them, and a
#: worker that runs only those must stay replaceable.
LONG = 5.0

#: Seconds between two looks.
EVERY = 5.0

#: How long a protection lasts if it is not renewed, because the worker is gone, and when it is
#: renewed, in minutes and seconds.
MINUTES = 30
RENEWED_AFTER = 600.0

#: Seconds for a call of the agent, which is on the same machine.
TIMEOUT = 5.0

Protect = Callable[[bool], None]
"""Asks for protection, or gives it up. Raises ProtectionError."""


class ProtectionError(Exception):
    """The agent did not answer, or refused."""


class ScaleInObserver(Observer):
    """Protects this ECS task while a task of Celery runs for longer than `LONG`. Thread-safe."""

    def __init__(self, protect: Protect, clock: Callable[[], float] = monotonic) -> None:
        self._protect = protect
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, float] = {}
        """When the pool started each message, by the tag of its delivery."""
        self._protected_at: float | None = None
        self._seldom = Seldom()

    def started(self, message: Facts) -> None:
        with self._lock:
            self._running[message.delivery.tag] = self._clock()

    def ended(self, message: Facts, happened: Happened, outcome: Outcome) -> None:
        self._end(message)

    def lost(self, message: Facts, why: str) -> None:
        self._end(message)

    def look(self) -> None:
        """Ask for protection or give it up, if that has become necessary. Never raises."""
        now = self._clock()
        with self._lock:
            is_long = any(now - began >= LONG for began in self._running.values())
        at = self._protected_at
        if not is_long and at is None:
            return
        if is_long and at is not None and now - at < RENEWED_AFTER:
            return
        try:
            self._protect(is_long)
        except ProtectionError as exc:
            if self._seldom.allows("protect", now):
                logger.warning(
                    "ECS did not change the protection of this task from scale-in (%s). It is "
                    "tried again.",
                    exc,
                    extra={"event": "scale_in.failed", "error": str(exc)},
                )
        else:
            self._protected_at = now if is_long else None

    def _end(self, message: Facts) -> None:
        with self._lock:
            self._running.pop(message.delivery.tag, None)


class Watched(ScaleInObserver):
    """Looks every few seconds, on a thread that begins with the first message. Does nothing unless
    the setting says so."""

    def started(self, message: Facts) -> None:
        if self._is_wanted:
            super().started(message)
            assert self._thread.daemon

    @cached_property
    def _is_wanted(self) -> bool:
        return get_ecs_settings().ecs_scale_in_protection

    @cached_property
    def _thread(self) -> threading.Thread:
        thread = threading.Thread(target=self._watch, name="scale-in", daemon=True)
        thread.start()
        return thread

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(EVERY):
            self.look()


def ask_agent(is_protected: bool) -> None:
    """Tell the agent of this task. Raises ProtectionError."""
    # A producer imports this module too.
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    agent = get_ecs_settings().ecs_agent_uri
    if agent is None:
        raise ProtectionError("ECS_AGENT_URI is not set")
    wanted: dict[str, Any] = {"ProtectionEnabled": is_protected}
    if is_protected:
        wanted["ExpiresInMinutes"] = MINUTES
    request = urllib.request.Request(
        f"{agent}/task-protection/v1/state",
        data=json.dumps(wanted).encode(),
        headers={"Content-Type": "application/json"},
        method="PUT",
    )
    # Without the proxies of the environment, which cannot reach the agent.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as exc:
        raise ProtectionError(f"the agent answers {exc.code}") from exc
    except (OSError, ValueError, HTTPException) as exc:
        raise ProtectionError(label(exc)) from exc
    # A refusal has `failure` or `error` in place of it.
    if found.get("protection", {}).get("ProtectionEnabled") is not is_protected:
        raise ProtectionError("the agent refuses")


observer = Watched(ask_agent)
