"""Reads MONGO_URI, and opens all MongoDB clients of this program in one way.

The tasks, the start checks, `sqs doctor` and the probe all get their client here, so the checks
test the same client that the tasks use. Each option of the URI is used, replaced with a value that
this program needs for its promises, or refused by name. See docs/mongodb.md.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from typing import Any, Self, TypeVar
from urllib.parse import unquote_plus

import pymongo
from pydantic import SecretStr
from pymongo import AsyncMongoClient, MongoClient
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_userinfo, split_hosts, split_options

from app.errors import SettingsError
from app.settings import DEFAULT_DATABASE, HOW_TO_SET, Settings, get_settings

T = TypeVar("T")

#: Seconds for the close of a client. It tells MongoDB which sessions have ended. pymongo 4.20 sets
#: no time limit for that call.
CLOSE_TIMEOUT = 1.0


class Client(MongoClient[dict[str, Any]]):
    """pymongo's client, whose close ends soon although MongoDB does not answer. MongoDB then ends
    its sessions itself, after half an hour."""

    def close(self) -> None:
        """Close it within CLOSE_TIMEOUT seconds."""
        with pymongo.timeout(CLOSE_TIMEOUT):
            super().close()


class AsyncClient(AsyncMongoClient[dict[str, Any]]):
    """The same for an event loop."""

    async def close(self) -> None:
        """Close it within CLOSE_TIMEOUT seconds."""
        with pymongo.timeout(CLOSE_TIMEOUT):
            await super().close()


#: The options of every client, in place of those of the URI and of the server. A write is confirmed
#: once a majority of the members has it on disk, so no failover can undo it. A read returns only
#: such writes.
#: https://www.mongodb.com/docs/manual/reference/write-concern/
OURS: Mapping[str, Any] = {
    "w": "majority",
    "journal": True,
    "readPreference": "primary",
    "readConcernLevel": "majority",
    "retryWrites": True,
    "retryReads": True,
    "tz_aware": True,
    # Without it MongoEngine uses a representation that pymongo no longer supports.
    "uuidRepresentation": "standard",
}

#: Timeouts in milliseconds, if the URI has none. pymongo's own are 30 s, none and 20 s, but a task
#: must notice an unavailable database well within its soft time limit.
DEFAULT_TIMEOUTS: Mapping[str, int] = {
    "serverSelectionTimeoutMS": 5_000,
    "timeoutMS": 10_000,
    "connectTimeoutMS": 5_000,
}

#: Shortest timeouts in milliseconds. A shorter one would fail on a healthy database.
LEAST_TIMEOUT = 500
LEAST_OPERATION_TIMEOUT = 1_000

#: Options that are used as in the URI, with the least value that each may have.
HONOURED: Mapping[str, int | None] = {
    "appName": None,
    "authMechanism": None,
    "authMechanismProperties": None,
    "authSource": None,
    "compressors": None,
    "connectTimeoutMS": LEAST_TIMEOUT,
    "directConnection": None,
    "enableOverloadRetargeting": None,
    "heartbeatFrequencyMS": None,
    "localThresholdMS": None,
    "maxAdaptiveRetries": None,
    "maxConnecting": None,
    "maxIdleTimeMS": None,
    "maxPoolSize": None,
    "minPoolSize": None,
    "replicaSet": None,
    "serverMonitoringMode": None,
    "serverSelectionTimeoutMS": LEAST_TIMEOUT,
    "socketTimeoutMS": LEAST_TIMEOUT,
    "srvAllowedHostsSuffix": None,
    "srvMaxHosts": None,
    "srvServiceName": None,
    "ssl": None,
    "timeoutMS": LEAST_OPERATION_TIMEOUT,
    "tls": None,
    "tlsAllowInvalidCertificates": None,
    "tlsAllowInvalidHostnames": None,
    "tlsCAFile": None,
    "tlsCertificateKeyFile": None,
    "tlsCertificateKeyFilePassword": None,
    "tlsCRLFile": None,
    "tlsDisableOCSPEndpointCheck": None,
    "tlsInsecure": None,
    "waitQueueTimeoutMS": LEAST_TIMEOUT,
    "zlibCompressionLevel": None,
}

#: Options that `OURS` replaces, and why a URI may not set them.
REPLACED: Mapping[str, str] = {
    "datetime_conversion": "times are read as this program writes them",
    "fsync": "writes wait for the journal of a majority",
    "j": "writes wait for the journal of a majority",
    "journal": "writes wait for the journal of a majority",
    "maxStalenessSeconds": "reads go to the primary",
    "readConcernLevel": "reads return only what a majority has",
    "readPreference": "reads go to the primary",
    "readPreferenceTags": "reads go to the primary",
    "retryReads": "the driver repeats a read after a failover",
    "retryWrites": "the driver repeats a write after a failover",
    "tz_aware": "times are read as this program writes them",
    "unicode_decode_error_handler": "texts are read as this program writes them",
    "uuidRepresentation": "ids are read as this program writes them",
    "w": "writes wait for a majority",
    "wTimeoutMS": "timeoutMS limits the wait for a majority too",
}

#: Options that are refused although pymongo knows them, and why.
REFUSED: Mapping[str, str] = {
    "connect": "every client connects when it is first used",
    "loadBalanced": "transactions and failovers behind a load balancer have not been tried",
    "waitQueueMultiple": "pymongo no longer has it; use waitQueueTimeoutMS",
}

#: Most bytes of a database's name.
#: https://www.mongodb.com/docs/manual/reference/limits/#mongodb-limit-Length-of-Database-Names
LONGEST_NAME = 63

#: Options that only the tasks' client uses. The client of the control plane has its own timeouts,
#: and each of its readers keeps a connection.
TASKS_ONLY = frozenset(
    name.lower()
    for name in (
        "connectTimeoutMS",
        "maxConnecting",
        "maxIdleTimeMS",
        "maxPoolSize",
        "minPoolSize",
        "serverSelectionTimeoutMS",
        "socketTimeoutMS",
        "timeoutMS",
        "waitQueueTimeoutMS",
    )
)

NO_ADDRESS = (
    "MONGO_URI: this is not a MongoDB address. It must look like "
    "mongodb://user:password@host:27017/database?replicaSet=name, with user and password "
    "percent-encoded."
)

_SPELLINGS = {name.lower(): name for name in (*HONOURED, *REPLACED, *REFUSED)}
_LEAST = {name.lower(): least for name, least in HONOURED.items()}
_OURS = {name.lower(): value for name, value in OURS.items()}
_REPEATED = frozenset({"readpreferencetags"})
_OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_BAD_IN_DATABASE = re.compile(r'[/\\ "$*<>:|?\0]')


@dataclass(frozen=True)
class Address:
    """A checked MONGO_URI."""

    base: str = field(repr=False)
    """The URI without options. It may hold a password."""
    options: Mapping[str, str] = field(repr=False)
    """The used options as they were given, by name."""
    replaced: tuple[str, ...]
    """Names of the options whose value was replaced."""
    database: str

    @classmethod
    def read(cls, uri: str) -> Self:
        """Check a URI without a connection. Raises SettingsError with the name of the option, but
        without values."""
        base, _, query = uri.strip().partition("?")
        database = _database_of(base, query)
        given = dict(_options_of(query))
        return cls(
            base=base,
            options={name: given[name] for name in given if name.lower() in _LEAST},
            replaced=tuple(name for name in given if _is_replaced(name, given[name])),
            database=database,
        )

    @property
    def uri(self) -> str:
        """The URI with only the used options."""
        return self._uri(self.options)

    @property
    def control_uri(self) -> str:
        """The URI for the control plane's client."""
        return self._uri({k: v for k, v in self.options.items() if k.lower() not in TASKS_ONLY})

    def _uri(self, options: Mapping[str, str]) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"{self._base}?{query}" if query else self.base

    @property
    def _base(self) -> str:
        # Options must follow a slash, which an address without a database may lack.
        authority = self.base.partition("://")[2]
        return self.base if "/" in authority else f"{self.base}/"

    def client(self, options: Mapping[str, str] | None = None, **settings: Any) -> Client:
        """A client with this program's options. Does not wait for the server. Raises pymongo's
        errors if the options contradict each other."""
        options = self.options if options is None else options
        uri, chosen = self._uri(options), {**_settings(options), **settings}
        return _with_short_stack(lambda: Client(uri, **chosen))

    def async_client(self) -> AsyncClient:
        """The same client for the event loop that first uses it."""
        return AsyncClient(self.uri, **_settings(self.options))


def _settings(options: Mapping[str, str]) -> dict[str, Any]:
    given = {name.lower() for name in options}
    return {**OURS, **{k: v for k, v in DEFAULT_TIMEOUTS.items() if k.lower() not in given}}


def _with_short_stack(create: Callable[[], T]) -> T:
    """Call this in a thread of its own.

    With each client pymongo keeps the text of its stack (4.20 settings_shared.py), for which Python
    reads the source files of all functions on it, and keeps them. In a pool process these were 17
    files and 1 MB. In a thread they are few, and those that a worker has read before it forks.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(create).result()


@cache
def address_of(uri: str) -> Address:
    """The address in a URI, checked once per process. Raises SettingsError in one line."""
    address = Address.read(uri)
    if (culprits := _culprits(address)) is not None:
        names = " or ".join(culprits) or "its options"
        raise SettingsError(
            f"MONGO_URI: pymongo cannot open a client because of {names}. Correct the URI."
        )
    return address


def open_client(uri: str, **settings: Any) -> Client:
    """A client for a MONGO_URI: majority, journal, primary. Does not wait for the server.

    Raises SettingsError, in one line without any value of the URI, if the URI cannot be used.
    """
    return address_of(uri).client(**settings)


def control() -> dict[str, Any]:
    """The broker's option `control`, by the settings of this process."""
    return control_options(get_settings())


def control_options(settings: Settings) -> dict[str, Any]:
    """The broker's option `control`: one control plane for all processes with the same MONGO_URI.

    An invalid URI is treated as missing. A process that needs the control plane then gets the
    reason; a producer does not need it.
    """
    given = settings.mongo_uri
    uri, database = None, DEFAULT_DATABASE
    # Flower's page of a worker's settings shows it.
    how_to_set = HOW_TO_SET if given else f"MONGO_URI is not set. {HOW_TO_SET}"
    if given is not None:
        try:
            address = address_of(given.get_secret_value())
            uri, database = SecretStr(address.control_uri), address.database
        except SettingsError as exc:
            how_to_set = exc.message
    return {
        "database_uri": uri,
        "database": settings.control_database or control_database(database),
        "size_bytes": settings.control_size_mib * 1024 * 1024,
        "revokes_seconds": settings.once_retention_days * 24 * 3600,
        "how_to_set": how_to_set,
    }


def control_database(database: str) -> str:
    """The name of the control plane's database: `_control` appended. If that is longer than MongoDB
    allows, the name is cut and has a digest, so that it is still no other database's."""
    if len(name := f"{database}_control".encode()) <= LONGEST_NAME:
        return name.decode()
    end = f"_{sha256(database.encode()).hexdigest()[:8]}_control"
    return database.encode()[: LONGEST_NAME - len(end)].decode(errors="ignore") + end


def _culprits(address: Address) -> list[str] | None:
    """The options that each prevent a client: without any one of them, it can be created. None if
    all options together allow one."""
    if _can_create(address, address.options):
        return None
    return [
        name
        for name in address.options
        if _can_create(address, {k: v for k, v in address.options.items() if k != name})
    ]


def _can_create(address: Address, options: Mapping[str, str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            address.client(options, connect=False).close()
    except (PyMongoError, ValueError, TypeError, OSError, Warning):
        return False
    return True


def _database_of(base: str, query: str) -> str:
    """The name of the database in the URI. Raises SettingsError if the address before it is not
    valid."""
    scheme, separator, rest = base.partition("://")
    authority, _, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    # If a password has an unescaped slash or question mark, its rest is parsed as the path or the
    # options, and an error would show it as the name of a database or an option.
    is_astray = "@" in path or ("@" in query and not at)
    if not separator or scheme not in ("mongodb", "mongodb+srv") or is_astray or "#" in authority:
        raise SettingsError(NO_ADDRESS)
    try:
        split_hosts(hosts)
        if at:
            parse_userinfo(userinfo)
    except (PyMongoError, ValueError):
        raise SettingsError(NO_ADDRESS) from None
    name = unquote_plus(path).partition(".")[0]
    if _BAD_IN_DATABASE.search(name) or len(name.encode()) > LONGEST_NAME:
        raise SettingsError(
            "MONGO_URI: the part after the slash is not a valid database name: at most 63 bytes, "
            'without / \\ " $ * < > : | ? and spaces.'
        )
    return name or DEFAULT_DATABASE


def _options_of(query: str) -> Iterator[tuple[str, str]]:
    """Each option, with pymongo's spelling of its name. Raises SettingsError with the name of an
    invalid option."""
    seen: set[str] = set()
    for pair in filter(None, query.split(";" if ";" in query and "&" not in query else "&")):
        key, _, value = pair.partition("=")
        name = _SPELLINGS.get(key.lower())
        if name is None:
            raise SettingsError(f"MONGO_URI: {_unknown(key)}")
        if reason := REFUSED.get(name):
            raise SettingsError(f"MONGO_URI: {name} is not accepted: {reason}. Remove it.")
        if name in seen and name.lower() not in _REPEATED:
            raise SettingsError(f"MONGO_URI: {name} is given twice. Remove one.")
        seen.add(name)
        if not _is_possible(name, value):
            is_file = name.endswith("File")
            what = "names a file that cannot be read" if is_file else "has an invalid value"
            raise SettingsError(f"MONGO_URI: {name} {what}. Correct it.")
        least = _LEAST.get(name.lower())
        if least is not None and not (value.isdigit() and int(value) >= least):
            raise SettingsError(f"MONGO_URI: {name} must be at least {least} milliseconds.")
        yield name, value


def _unknown(key: str) -> str:
    if not _OPTION_NAME.fullmatch(key):
        return "an option has no valid name. Correct it."
    near = get_close_matches(key.lower(), _LEAST.keys() | map(str.lower, REPLACED), 1, cutoff=0.75)
    hint = f" Did you mean {_SPELLINGS[near[0]]}?" if near else ""
    return f"{key} is not an option that this program knows.{hint} Correct it or remove it."


def _is_possible(name: str, value: str) -> bool:
    if not value:
        # Only this option may be empty: it then means no tags.
        return name.lower() in _REPEATED
    try:
        with warnings.catch_warnings():
            # pymongo only warns about an invalid value, and then ignores it.
            warnings.simplefilter("error")
            # `j` was an option of URIs; pymongo knows it only as a keyword argument.
            split_options(f"{'journal' if name == 'j' else name}={value}")
    except (PyMongoError, ValueError, TypeError, OSError, Warning):
        return False
    return True


def _is_replaced(name: str, value: str) -> bool:
    if name not in REPLACED:
        return False
    ours = _OURS.get("journal" if name == "j" else name.lower())
    return str(ours).lower() != value.lower()
