"""A replica set of real mongods, and all that can happen to one."""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pymongo
from pymongo import MongoClient
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError

from devstack import ports
from devstack.mongo import REPLICA_SET
from tests.deployments.certificates import Certificates
from tests.deployments.member import Member
from tests.services import wait_until

#: Seconds for a new set to have all its members, and for a set to have a primary again.
START_SECONDS = 60
PRIMARY_SECONDS = 40

#: Milliseconds without a primary after which the others elect one.
ELECTION_TIMEOUT = 2_000

#: Milliseconds after which the administrator gives up, and seconds for a member to say what it is.
LOOK = 5_000
HELLO_SECONDS = 1

#: A quiet member that stops waits for nobody.
QUICK = ("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100")

#: MongoDB's codes: the localhost exception is over, and a change that waits for another one.
UNAUTHORIZED = 13
RECONFIG_IN_PROGRESS = 109

PRIMARY, SECONDARY, ARBITER, OTHER, AWAY = "PRIMARY", "SECONDARY", "ARBITER", "OTHER", "AWAY"

#: The name of this machine for clients that come through proxies; the members use its number.
OUTSIDE = "localhost"

Client = MongoClient[dict[str, Any]]
Front = Callable[[int], int]


@dataclass(frozen=True)
class User:
    """Who logs in, against the database `admin`."""

    name: str
    password: str


#: May do everything.
ROOT = User("root", "root's password")
#: Has the roles that a test grants, in the databases that it names.
APPLICATION = User("application", "the application's p@ssword")


@dataclass(frozen=True)
class Shape:
    """How a deployment is made."""

    members: int = 1
    """With data."""
    has_arbiter: bool = False
    authentication: bool = False
    tls: bool = False
    election_timeout: int = ELECTION_TIMEOUT
    arguments: tuple[str, ...] = ()
    """More of mongod's own, such as `--maxConns`."""


class Deployment:
    """Used through `running`. Members are known by their number; an arbiter comes last."""

    def __init__(self, directory: Path, shape: Shape, front: Front | None = None) -> None:
        self.shape = shape
        self._front = front
        self.certificates = Certificates.made_in(directory) if shape.tls else None
        arguments = [*shape.arguments, *QUICK, *self._tls_arguments()]
        if shape.authentication:
            arguments += ["--keyFile", str(_new_key(directory))]
        count = shape.members + shape.has_arbiter
        self.members = [
            Member(
                number,
                directory,
                ports.preferred_or_any(None),
                arguments,
                is_arbiter=number == shape.members,
            )
            for number in range(count)
        ]
        self._clients: dict[tuple[str | None, User | None], Client] = {}
        self._open = ExitStack()
        self._lock = threading.Lock()

    # Looking at it --------------------------------------------------------------------------------

    def uri(self, database: str, *, user: User | None = APPLICATION, **options: object) -> str:
        """For clients: the members that hold data are its seeds. `user=None` logs nobody in;
        `options` are the URI's own, and come before those that the deployment needs."""
        needed: dict[str, object] = {"replicaSet": REPLICA_SET}
        if self.certificates:
            needed |= {"tls": True, "tlsCAFile": self.certificates.authority}
        login = ""
        if self.shape.authentication and user is not None:
            needed |= {"authSource": "admin"}
            login = f"{quote(user.name, safe='')}:{quote(user.password, safe='')}@"
        hosts = ",".join(m.front or m.host for m in self.members if not m.is_arbiter)
        return f"mongodb://{login}{hosts}/{database}?{_query(needed | options)}"

    def client(self, member: int | None = None) -> Client:
        """The administrator's client of the set, or of one member past the set. It is the
        deployment's own, which closes it; ask for it anew each time. Thread-safe."""
        return self._kept(None if member is None else self.members[member].host, ROOT)

    def state(self, member: int) -> str:
        """As the member itself says: PRIMARY, SECONDARY, ARBITER or, where it is none of these,
        OTHER; AWAY where it does not answer."""
        looked_at = self.members[member]
        if not looked_at.is_running or looked_at.is_frozen:
            return AWAY
        with suppress(PyMongoError), pymongo.timeout(HELLO_SECONDS):
            # It says so before anybody has logged in.
            hello = self._kept(looked_at.host, None).admin.command("hello")
            if "setName" not in hello:
                return OTHER
            if hello["isWritablePrimary"]:
                return PRIMARY
            if hello.get("arbiterOnly"):
                return ARBITER
            return SECONDARY if hello["secondary"] else OTHER
        return AWAY

    @property
    def primary(self) -> int:
        """The number of the primary. Raises LookupError where there is none."""
        for member in self._answering():
            if self.state(member.number) == PRIMARY:
                return member.number
        raise LookupError("no member is primary")

    @property
    def secondaries(self) -> list[int]:
        """The numbers of the secondaries."""
        return [m.number for m in self._answering() if self.state(m.number) == SECONDARY]

    def wait_for_primary(self, seconds: float = PRIMARY_SECONDS) -> int:
        """The number of the primary, once there is one that can be written to."""

        def look() -> list[int]:
            with suppress(LookupError):
                return [self.primary]
            return []

        return wait_until(look, seconds, "a primary")[0]

    def wait_until_whole(self, seconds: float = START_SECONDS) -> None:
        """Returns once there is a primary that every other member follows, and all have what it
        has."""
        wait_until(
            lambda: self._has_all_members() and self._is_replicated(),
            seconds,
            "all members of the replica set",
        )

    # What happens to members ----------------------------------------------------------------------

    def kill(self, member: int) -> None:
        """End it as a machine that loses power."""
        self.members[member].kill()

    def stop(self, member: int) -> None:
        """Shut it down."""
        self.members[member].stop()

    def start(self, member: int, *, as_standalone: bool = False) -> None:
        """Start it again where its data is; returns once it takes connections. As a standalone it
        knows of no replica set."""
        self.members[member].launch(as_standalone=as_standalone)
        self.members[member].wait_until_listening()

    def freeze(self, member: int) -> None:
        """Cut it off: its connections stay open and nothing answers, until `thaw`."""
        self.members[member].freeze()

    def thaw(self, member: int) -> None:
        """Let it go on."""
        self.members[member].thaw()

    def move(self, member: int, *, name: str = ports.HOST) -> None:
        """Shut it down and start it at another port, and maybe under another name of this machine,
        such as "localhost": the set, and a client that asks it, know it by these from now on."""
        moved = self.members[member]
        self._forget(moved.host)
        self.stop(member)
        moved.port, moved.name = ports.preferred_or_any(None), name
        self.start(member)
        self.wait_for_primary()
        self._put_in_front(moved)
        told = self._told(moved)
        self.reconfigure(lambda config: config["members"][member].update(told))

    def reconfigure(self, change: Any) -> None:
        """Let `change` edit the configuration of the set, and put it into force."""

        def changed() -> bool:
            try:
                admin = self.client(self.primary).admin
                config = admin.command("replSetGetConfig")["config"]
                change(config)
                config["version"] += 1
                admin.command("replSetReconfig", config)
            except (LookupError, AutoReconnect):
                return False
            except OperationFailure as exc:
                # One at a time, and each once a majority has the one before.
                if exc.code != RECONFIG_IN_PROGRESS:
                    raise
                return False
            return True

        wait_until(changed, PRIMARY_SECONDS, "a set that takes a new configuration")

    def step_down(self, seconds: int = 10) -> None:
        """Let the primary be a secondary for so long; another one is elected meanwhile."""
        admin = self.client(self.wait_for_primary()).admin
        with suppress(AutoReconnect):
            admin.command(
                "replSetStepDown", seconds, secondaryCatchUpPeriodSecs=min(5, seconds), force=True
            )

    # What happens to whoever writes ---------------------------------------------------------------

    def block_writes(self, blocked: bool = True) -> None:
        """Refuse writes of everybody but the administrator, or take them again."""
        self.wait_for_primary()
        self.client().admin.command("setUserWriteBlockMode", 1, **{"global": blocked})

    @contextmanager
    def fail_command(
        self, *commands: str, times: int | None = None, **how: object
    ) -> Iterator[None]:
        """Fail these commands on every member that answers, until the end of the block or so many
        times on each; `how` is the fail point's, such as `errorCode=91`.

        https://github.com/mongodb/mongo/wiki/The-%22failCommand%22-fail-point
        """
        mode: object = "alwaysOn" if times is None else {"times": times}
        data = {"failCommands": list(commands), **how}
        self._set_fail_point(mode, data)
        try:
            yield
        finally:
            self._set_fail_point("off", {})

    def grant(self, database: str, role: str = "readWrite") -> None:
        """Give the application a role in a database."""
        self._change_roles("grantRolesToUser", database, role)

    def revoke(self, database: str, role: str = "readWrite") -> None:
        """Take it away; connections that are open lose it too."""
        self._change_roles("revokeRolesFromUser", database, role)

    def _change_roles(self, command: str, database: str, role: str) -> None:
        self.wait_for_primary()
        roles = [{"role": role, "db": database}]
        self.client().admin.command(command, APPLICATION.name, roles=roles)

    def _set_fail_point(self, mode: object, data: dict[str, object]) -> None:
        for member in self._answering():
            self.client(member.number).admin.command(
                "configureFailPoint", "failCommand", mode=mode, data=data
            )

    # Its whole life -------------------------------------------------------------------------------

    def repair(self) -> None:
        """Undo all that was done to it, but for what is stored and who has which role."""
        for member in self.members:
            member.thaw()
            if self.state(member.number) == OTHER:
                # It was started as a standalone, or does not find itself in the set.
                member.stop()
            if not member.is_running:
                self.start(member.number)
        self.wait_until_whole()
        self._set_fail_point("off", {})
        self.block_writes(False)

    def begin(self) -> None:
        """Start every member, and make them a replica set."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.wait_until_listening()
            self._put_in_front(member)
        config = {
            "_id": REPLICA_SET,
            "members": [self._told(member) for member in self.members],
            "settings": {
                "electionTimeoutMillis": self.shape.election_timeout,
                "heartbeatIntervalMillis": self.shape.election_timeout // 4,
                # Else one that is elected waits for these two, with a member that is frozen.
                "heartbeatTimeoutSecs": max(1, self.shape.election_timeout // 1_000),
                "catchUpTimeoutMillis": self.shape.election_timeout,
            },
        }
        first = self._kept(self.members[0].host, None)
        first.admin.command("replSetInitiate", config)
        wait_until(self._has_all_members, START_SECONDS, "a new replica set")
        if self.shape.authentication:
            self._make_users(first)
        self.wait_until_whole()

    def end(self) -> None:
        """Leave nothing running."""
        self._open.close()
        for member in self.members:
            member.kill()

    def _put_in_front(self, member: Member) -> None:
        if self._front is not None:
            member.front = f"{OUTSIDE}:{self._front(member.port)}"

    def _told(self, member: Member) -> dict[str, Any]:
        """What the configuration of the set says of a member."""
        told = {"_id": member.number, "host": member.host, "arbiterOnly": member.is_arbiter}
        # https://www.mongodb.com/docs/manual/reference/method/rs.conf: by the name that a client
        # asks for in TLS, the member tells it the addresses that it can reach.
        return told | ({"horizons": {"outside": member.front}} if member.front else {})

    def _make_users(self, first: Client) -> None:
        # Nobody can log in yet: from this machine the first user may be made, and only that one.
        first.admin.command("createUser", ROOT.name, pwd=ROOT.password, roles=["root"])
        self.client().admin.command(
            "createUser", APPLICATION.name, pwd=APPLICATION.password, roles=[]
        )

    def _has_all_members(self) -> bool:
        states = sorted(self.state(member.number) for member in self.members)
        others = [SECONDARY] * (self.shape.members - 1) + [ARBITER] * self.shape.has_arbiter
        return states == sorted([PRIMARY, *others])

    def _is_replicated(self) -> bool:
        concern = {"w": self.shape.members, "wtimeout": LOOK // 2}
        with suppress(PyMongoError):
            self.client().admin.command("appendOplogNote", data={}, writeConcern=concern)
            return True
        return False

    def _answering(self) -> Iterator[Member]:
        return (member for member in self.members if self.state(member.number) != AWAY)

    def _kept(self, host: str | None, user: User | None) -> Client:
        key = host, user
        with self._lock:
            client = self._clients.get(key)
            if client is not None and not client.topology_description.server_descriptions():
                # It saw the last member leave the set, and looks for none any more.
                self._clients.pop(key).close()
            if key not in self._clients:
                self._clients[key] = self._open.enter_context(self._new_client(host, user))
            return self._clients[key]

    def _forget(self, host: str) -> None:
        with self._lock:
            clients = [self._clients.pop((host, user), None) for user in (None, ROOT)]
        for client in clients:
            if client is not None:
                client.close()

    def _new_client(self, host: str | None, user: User | None) -> Client:
        options: dict[str, Any] = {"serverSelectionTimeoutMS": LOOK, "socketTimeoutMS": LOOK}
        options |= {"connectTimeoutMS": LOOK, "tz_aware": True}
        if self.certificates:
            options |= {"tls": True, "tlsCAFile": str(self.certificates.authority)}
        if self.shape.authentication and user is not None:
            options |= {"username": user.name, "password": user.password}
        if host is None:
            hosts = [member.host for member in self.members if not member.is_arbiter]
            return MongoClient(hosts, replicaSet=REPLICA_SET, **options)
        return MongoClient(host, directConnection=True, **options)

    def _tls_arguments(self) -> Sequence[str]:
        if self.certificates is None:
            return ()
        return (
            *("--tlsMode", "requireTLS", "--tlsCAFile", str(self.certificates.authority)),
            *("--tlsCertificateKeyFile", str(self.certificates.server)),
            "--tlsAllowConnectionsWithoutCertificates",
        )


@contextmanager
def running(directory: Path, *, front: Front | None = None, **shape: Any) -> Iterator[Deployment]:
    """A deployment of a `Shape`, whole and taking writes, until the end of the block.

    `front` puts a proxy before a port and gives the proxy's port; it needs TLS. Clients of `uri`
    come through the proxies, while the members and the administrator go past them. Raises
    StackError or TimeoutError if it does not start.
    """
    deployment = Deployment(directory, Shape(**shape), front)
    try:
        deployment.begin()
        yield deployment
    finally:
        deployment.end()


def _new_key(directory: Path) -> Path:
    key = directory / "key"
    key.touch(0o600)
    key.write_text(secrets.token_hex(64))
    return key


def _query(options: dict[str, object]) -> str:
    told = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in options.items()}
    return urlencode(told, safe="/")
