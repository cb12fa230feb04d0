"""The Flower of the stack, with a password for each start."""

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from devstack import ports
from devstack.process import Process

START_SECONDS = 60
#: Time to save its state.
STOP_SECONDS = 10


@dataclass(frozen=True)
class Access:
    """The port and the login of Flower."""

    port: int
    login: str = field(repr=False)

    @classmethod
    def new(cls, port: int) -> "Access":
        """The port if it is free, otherwise another one, and a new login."""
        return cls(ports.preferred_or_any(port), f"admin:{secrets.token_urlsafe(16)}")

    @property
    def url(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a client needs."""
        return {"FLOWER_URL": self.url, "FLOWER_BASIC_AUTH": self.login}


@contextmanager
def running(
    access: Access,
    *,
    environment: Mapping[str, str],
    directory: Path,
    state: Path,
    log: Path,
    keep_open: Sequence[int] = (),
) -> Iterator[Process]:
    """Flower until the end of the block, not yet listening. It stores its state in `state`."""
    # The stack must not use the settings of the user's own Flower.
    others = {name: value for name, value in environment.items() if not name.startswith("FLOWER_")}
    with Process(
        "Flower",
        [
            *(sys.executable, "-m", "celery", "-A", "app", "flower"),
            *(f"--address={ports.HOST}", f"--port={access.port}", "--auth=", "--auth_provider="),
        ],
        log=log,
        grace=STOP_SECONDS,
        environment={**others, "FLOWER_BASIC_AUTH": access.login, "FLOWER_DB": str(state)},
        directory=directory,
        keep_open=keep_open,
    ) as process:
        yield process
