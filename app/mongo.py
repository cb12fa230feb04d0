"""MONGO_URI, and the one way in which this program opens MongoDB.

Every client of the tasks, of the start checks, of the doctor and of the probe comes from
`open_client`, so that what starts is what runs. Each option of the URI is honoured, replaced by
what the promises of this program need, or refused by name. Docs: docs/mongodb.md.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any, Self
from urllib.parse import unquote_plus

from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_userinfo, split_hosts, split_options

from app.errors import SettingsError
from app.settings import DEFAULT_DATABASE, HOW_TO_SET, Settings

Client = MongoClient[dict[str, Any]]

#: What every client asks of MongoDB, whatever the URI and the defaults of the server say. A write
#: is answered once a majority of the members has it on disk, so that no failover undoes it; a read
#: sees only such writes.
#: https://www.mongodb.com/docs/manual/reference/write-concern/
OURS: Mapping[str, Any] = {
    "w": "majority",
    "journal": True,
    "readPreference": "primary",
    "readConcernLevel": "majority",
    "retryWrites": True,
    "retryReads": True,
    "tz_aware": True,
    # Without a word on it MongoEngine takes one that pymongo has given up.
    "uuidRepresentation": "standard",
}

#: Milliseconds, used if the URI does not say: a task has to hear of a database that is away well
#: within its soft time limit, and pymongo's own defaults are 30 s, never and 20 s.
DEFAULT_TIMEOUTS: Mapping[str, int] = {
    "serverSelectionTimeoutMS": 5_000,
    "timeoutMS": 10_000,
    "connectTimeoutMS": 5_000,
}

#: Milliseconds. A shorter one fails on a database that is well.
LEAST_TIMEOUT = 500
LEAST_OPERATION_TIMEOUT = 1_000

#: Options that are taken as the URI gives them, each with the least value that it may have.
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

#: Options that are replaced by what `OURS` says, and why a URI may not say otherwise.
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

#: Options that are for the tasks' client and not for the control plane's, which has its own
#: timeouts, and readers that keep a connection each.
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
    "MONGO_URI: this is no address of a MongoDB. It looks like "
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
    """A MONGO_URI that this program can keep its promises with."""

    base: str = field(repr=False)
    """The URI without options. It may hold a password."""
    options: Mapping[str, str] = field(repr=False)
    """The honoured options as they were given, by name."""
    replaced: tuple[str, ...]
    """Names of the options whose value was replaced."""
    database: str

    @classmethod
    def read(cls, uri: str) -> Self:
        """Check a URI without any call. Raises SettingsError naming the option, and no value."""
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
        """The URI with the honoured options only."""
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
        # Options come after a slash, which an address without a database may lack.
        authority = self.base.partition("://")[2]
        return self.base if "/" in authority else f"{self.base}/"

    def client(self, options: Mapping[str, str] | None = None, **settings: Any) -> Client:
        """A client with our settings. Raises what pymongo raises if the options do not go
        together; does not wait for the server."""
        options = self.options if options is None else options
        said = {name.lower() for name in options}
        defaults: dict[str, Any] = {
            k: v for k, v in DEFAULT_TIMEOUTS.items() if k.lower() not in said
        }
        return MongoClient(self._uri(options), **OURS, **defaults, **settings)


@cache
def address_of(uri: str) -> Address:
    """The address that a URI is, checked once a process. Raises SettingsError in one line."""
    address = Address.read(uri)
    if (culprits := _culprits(address)) is not None:
        names = " or ".join(culprits) or "its options"
        raise SettingsError(
            f"MONGO_URI: {names}: pymongo cannot open a client with it. Correct it."
        )
    return address


def open_client(uri: str) -> Client:
    """The client for a MONGO_URI: majority, journal, primary. It does not wait for the server.

    Raises SettingsError, in one line that holds no value of the URI, for what cannot be used.
    """
    return address_of(uri).client()


def control_options(settings: Settings) -> dict[str, Any]:
    """The broker's option `control`: the control plane, for all who share MONGO_URI.

    A URI that cannot be used is none, and whoever needs the control plane is told why: a producer
    does not.
    """
    given, how_to_set = settings.mongo_uri, f"MONGO_URI is not set. {HOW_TO_SET}"
    uri, database = None, DEFAULT_DATABASE
    if given is not None:
        try:
            address = address_of(given.get_secret_value())
            uri, database = SecretStr(address.control_uri), address.database
        except SettingsError as exc:
            how_to_set = exc.message
    return {
        "database_uri": uri,
        "database": settings.control_database or f"{database}_control",
        "size_bytes": settings.control_size_mib * 1024 * 1024,
        "revokes_seconds": settings.once_retention_days * 24 * 3600,
        "how_to_set": how_to_set,
    }


def _culprits(address: Address) -> list[str] | None:
    """The options without any one of which a client can be made; None if it can be made now."""
    if _can_be_made(address, address.options):
        return None
    return [
        name
        for name in address.options
        if _can_be_made(address, {k: v for k, v in address.options.items() if k != name})
    ]


def _can_be_made(address: Address, options: Mapping[str, str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            address.client(options, connect=False).close()
    except (PyMongoError, ValueError, TypeError, OSError, Warning):
        return False
    return True


def _database_of(base: str, query: str) -> str:
    """The database that the URI names; raises SettingsError if there is no address before it."""
    scheme, separator, rest = base.partition("://")
    authority, _, path = rest.partition("/")
    userinfo, at, hosts = authority.rpartition("@")
    # An unescaped slash or question mark in a password moves the rest of it into the path or the
    # options, where a database's or an option's name would be shown.
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
    if _BAD_IN_DATABASE.search(name) or len(name.encode()) > 63:
        raise SettingsError(
            "MONGO_URI: the part after the slash is no name of a database: at most 63 bytes, "
            'without / \\ " $ * < > : | ? and spaces.'
        )
    return name or DEFAULT_DATABASE


def _options_of(query: str) -> Iterator[tuple[str, str]]:
    """Each option by pymongo's spelling of its name. Raises SettingsError naming a faulty one."""
    seen: set[str] = set()
    for pair in filter(None, query.split(";" if ";" in query and "&" not in query else "&")):
        key, _, value = pair.partition("=")
        name = _SPELLINGS.get(key.lower())
        if name is None:
            raise SettingsError(f"MONGO_URI: {_unknown(key)}")
        if reason := REFUSED.get(name):
            raise SettingsError(f"MONGO_URI: {name} is not taken: {reason}. Leave it out.")
        if name in seen and name.lower() not in _REPEATED:
            raise SettingsError(f"MONGO_URI: {name} is given twice. Leave one out.")
        seen.add(name)
        if not _is_possible(name, value):
            what = "names a file that cannot be read" if name.endswith("File") else "cannot be that"
            raise SettingsError(f"MONGO_URI: {name} {what}. Correct it.")
        least = _LEAST.get(name.lower())
        if least is not None and not (value.isdigit() and int(value) >= least):
            raise SettingsError(f"MONGO_URI: {name} must be at least {least} milliseconds.")
        yield name, value


def _unknown(key: str) -> str:
    if not _OPTION_NAME.fullmatch(key):
        return "an option has no name, or one that no option has. Correct it."
    near = get_close_matches(key.lower(), _LEAST.keys() | map(str.lower, REPLACED), 1, cutoff=0.75)
    hint = f" Did you mean {_SPELLINGS[near[0]]}?" if near else ""
    return f"{key} is no option that this program knows.{hint} Correct it or leave it out."


def _is_possible(name: str, value: str) -> bool:
    if not value:
        # No tags is a wish too.
        return name.lower() in _REPEATED
    try:
        with warnings.catch_warnings():
            # pymongo warns of a value that it then ignores.
            warnings.simplefilter("error")
            # `j` is a keyword of pymongo's and was an option of URIs.
            split_options(f"{'journal' if name == 'j' else name}={value}")
    except (PyMongoError, ValueError, TypeError, OSError, Warning):
        return False
    return True


def _is_replaced(name: str, value: str) -> bool:
    if name not in REPLACED:
        return False
    ours = _OURS.get("journal" if name == "j" else name.lower())
    return str(ours).lower() != value.lower()
