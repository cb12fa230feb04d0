"""The SQS server of a run: fauxqs, which is fast at any depth, or roto where there is no Node."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench import node
from devstack import ports, sqs
from devstack.process import Process
from devstack.sqs import SqsServer
from devstack.waiting import wait_until

START_SECONDS = 20
#: Messages; beyond it, roto's receive, which looks at every message, is what would be measured.
ROTO_DEEPEST = 10_000


@dataclass(frozen=True)
class Server:
    """A running server, in memory, on 127.0.0.1."""

    sqs: SqsServer
    name: str
    deepest: int | None
    """Messages in a queue up to which its speed does not depend on them; None for any number."""

    def holds(self, messages: int) -> bool:
        return self.deepest is None or messages <= self.deepest


@contextmanager
def running(log: Path, why_no_node: str | None) -> Iterator[Server]:
    """A server, until the end of the block. Raises StackError if it does not start."""
    if why_no_node is not None:
        with sqs.running(log=log) as roto:
            yield Server(roto, f"roto {version('roto-aws')}, in memory", ROTO_DEEPEST)
        return
    port = ports.preferred_or_any(None)
    with Process("fauxqs", node.command("server.mjs", str(port)), log=log, grace=1) as process:

        def listens() -> bool:
            process.check()
            return ports.is_listening(port)

        wait_until(listens, START_SECONDS, "an SQS server that listens")
        yield Server(SqsServer(process, port), f"fauxqs {node.server_version()}, in memory", None)
