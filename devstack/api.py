"""The HTTP API of the stack, with a key for each start."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.api.keys import Scope, new_key
from devstack import ports
from devstack.process import Process

START_SECONDS = 60
#: Time to end the requests in flight.
STOP_SECONDS = 15
#: The name of the key.
CLIENT = "local"


@dataclass(frozen=True)
class Access:
    """The port and the key of the API."""

    port: int
    key: str = field(repr=False)
    entry: str
    """What API_KEYS has for the key."""

    @classmethod
    def new(cls, port: int) -> "Access":
        """The port if it is free, otherwise another one, and a new key that may do everything."""
        return cls(ports.preferred_or_any(port), *new_key(CLIENT, list(Scope)))

    @property
    def url(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a client needs."""
        return {"API_URL": self.url, "API_KEY": self.key}


@contextmanager
def running(
    access: Access,
    *,
    environment: Mapping[str, str],
    directory: Path,
    log: Path,
    keep_open: Sequence[int] = (),
) -> Iterator[Process]:
    """The API until the end of the block, not yet listening."""
    # The stack must not use the settings of the user's own API.
    others = {name: value for name, value in environment.items() if not name.startswith("API_")}
    with Process(
        "the API",
        [sys.executable, "-m", "app.api"],
        log=log,
        grace=STOP_SECONDS,
        environment={
            **others,
            "API_ADDRESS": ports.HOST,
            "API_PORT": str(access.port),
            "API_KEYS": access.entry,
            "API_PROCESSES": environment.get("API_PROCESSES", "1"),
        },
        directory=directory,
        keep_open=keep_open,
    ) as process:
        yield process
