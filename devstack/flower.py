"""Flower of the stack, with a password of its own."""

import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from devstack import ports
from devstack.errors import StackError
from devstack.process import Process
from devstack.waiting import wait_until

START_SECONDS = 60
#: To write down what it has seen.
STOP_SECONDS = 10


@dataclass(frozen=True)
class Access:
    """Where it is, and who gets in."""

    port: int
    login: str = field(repr=False)

    @classmethod
    def new(cls, port: int) -> "Access":
        """The port if it is free, else another one; and a login that nobody has had before."""
        return cls(ports.preferred_or_any(port), f"admin:{secrets.token_urlsafe(16)}")

    @property
    def url(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs, by name of the environment variable."""
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
    """Flower, just started, until the end of the block. It keeps what it has seen in `state`."""
    # How this user's own Flower is set up has no business in this stack.
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


def wait_until_listening(process: Process, access: Access) -> None:
    """Returns once it takes requests. Raises StackError if it does not."""

    def listens() -> bool:
        process.check()
        return ports.is_listening(access.port)

    try:
        wait_until(listens, START_SECONDS, "a Flower that listens")
    except TimeoutError as exc:
        raise StackError(f"{exc} (log: {process.log})") from None
