"""MONGO_URI: each option is taken, replaced or refused by name, and no line shows a value."""

import linecache
from pathlib import Path

import pytest
from pymongo import ReadPreference
from pymongo.common import URI_OPTIONS_VALIDATOR_MAP

from app.errors import SettingsError
from app.mongo import (
    DEFAULT_TIMEOUTS,
    HONOURED,
    REFUSED,
    REPLACED,
    Address,
    Client,
    control_options,
    open_client,
)
from app.settings import Settings

BASE = "mongodb://127.0.0.1:27017/db?replicaSet=rs0"
DOCUMENT = Path(__file__).parents[2] / "docs" / "mongodb.md"


def opened_with(options: str) -> Client:
    client = open_client(f"{BASE}&{options}" if options else BASE)
    client.close()
    return client


def refusal(uri: str) -> str:
    with pytest.raises(SettingsError) as raised:
        open_client(uri).close()
    assert "\n" not in raised.value.message
    return raised.value.message


@pytest.mark.parametrize(
    "options",
    [
        "",
        "w=0",
        "w=1",
        "w=2",
        "w=nosuchtag",
        "journal=false",
        "fsync=true",
        "wTimeoutMS=1",
        "readPreference=secondary",
        "readPreference=secondaryPreferred&maxStalenessSeconds=120",
        "readPreference=secondary&readPreferenceTags=dc:x&readPreferenceTags=",
        "readConcernLevel=local",
        "readConcernLevel=linearizable",
        "retryWrites=false",
        "retryReads=false",
        "tz_aware=false",
        "uuidRepresentation=pythonLegacy",
        "W=1&JOURNAL=false",
    ],
)
def test_whatever_the_uri_says_writes_are_durable_and_reads_see_only_such(options: str) -> None:
    client = opened_with(options)

    assert client.write_concern.document == {"w": "majority", "j": True}
    assert client.read_concern.level == "majority"
    assert client.read_preference == ReadPreference.PRIMARY
    assert client.options.retry_writes
    assert client.options.retry_reads
    assert client.codec_options.tz_aware


def test_what_is_replaced_is_said_and_what_agrees_is_not() -> None:
    asked = Address.read(f"{BASE}&w=1&readPreference=secondary&fsync=true&retryWrites=false")
    agreed = Address.read(f"{BASE}&w=majority&journal=true&readPreference=primary&retryWrites=true")

    assert asked.replaced == ("w", "readPreference", "fsync", "retryWrites")
    assert agreed.replaced == ()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("frobnicate=1", "frobnicate"),
        ("useNewUrlParser=true", "useNewUrlParser"),
        ("retryWrite=true", "Did you mean retryWrites?"),
        ("ssl_cert_reqs=CERT_NONE", "ssl_cert_reqs"),
        ("proxyHost=127.0.0.1", "proxyHost"),
        ("maxPoolSize=abc", "maxPoolSize"),
        ("connectTimeoutMS=abc", "connectTimeoutMS"),
        ("retryWrites=yes", "retryWrites"),
        ("readPreference=foo", "readPreference"),
        ("compressors=foo", "compressors"),
        ("uuidRepresentation=foo", "uuidRepresentation"),
        ("zlibCompressionLevel=42", "zlibCompressionLevel"),
        ("timeoutMS=1", "timeoutMS must be at least 1000"),
        ("timeoutMS=0", "timeoutMS must be at least 1000"),
        ("timeoutMS=-1", "timeoutMS"),
        ("socketTimeoutMS=1", "socketTimeoutMS must be at least 500"),
        ("serverSelectionTimeoutMS=1", "serverSelectionTimeoutMS must be at least 500"),
        ("connectTimeoutMS=1", "connectTimeoutMS must be at least 500"),
        ("waitQueueTimeoutMS=1", "waitQueueTimeoutMS must be at least 500"),
        ("heartbeatFrequencyMS=1", "heartbeatFrequencyMS"),
        ("minPoolSize=500", "minPoolSize"),
        ("minPoolSize=90&maxPoolSize=10", "minPoolSize or maxPoolSize"),
        ("srvServiceName=x", "srvServiceName"),
        ("loadBalanced=true", "loadBalanced"),
        ("connect=false", "connect"),
        ("authSource=", "authSource"),
        ("appName", "appName"),
        ("appName=a&appName=b", "appName is given twice"),
        ("tls=true&ssl=false", "tls or ssl"),
        ("tls=true&tlsCAFile=/no/such/file", "tlsCAFile"),
        (f"tls=true&tlsCAFile={__file__}", "tlsCAFile"),
        ("authMechanism=PLAIN", "authMechanism"),
        ("=", "an option has no valid name"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(options: str, name: str) -> None:
    told = refusal(f"{BASE}&{options}")

    assert told.startswith("MONGO_URI: ")
    assert name in told


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://app:S3/cret@127.0.0.1:27017/db",
        "mongodb://app:S3?cret@127.0.0.1:27017/db",
        "mongodb://app:S3#cret@127.0.0.1:27017/db",
        "mongodb://app:S3@cret@127.0.0.1:27017/db",
        "mongodb://app:S3%cret@127.0.0.1:27017/db",
        "mongodb://app:S3:cret@127.0.0.1:27017/db",
        "mongo://app:S3cret@127.0.0.1:27017/db",
        "app:S3cret@127.0.0.1:27017/db",
        '"mongodb://app:S3cret@127.0.0.1:27017/db"',
        "mongodb://app:S3cret@",
        "mongodb://app:S3cret@127.0.0.1:27017/db?frobnicate=S3cret",
        "mongodb://app:S3cret@127.0.0.1:27017/db?S3cret",
        "mongodb://app:S3cret@127.0.0.1:27017/db?tls=true&tlsCAFile=/S3cret",
        "mongodb://app:S3cret@127.0.0.1:27017/db?maxPoolSize=S3cret",
        "mongodb://app:S3cret@127.0.0.1:port/db",
        "mongodb://",
        "",
    ],
)
def test_a_refusal_holds_nothing_of_a_password(uri: str) -> None:
    told = refusal(uri)

    # The name of an option is said, whatever it is; what stands where no name stands is not.
    if not uri.endswith("db?S3cret"):
        assert "S3" not in told
    assert "cret" not in told.replace("S3cret", "")


@pytest.mark.parametrize("name", DEFAULT_TIMEOUTS)
def test_naming_one_timeout_leaves_the_others(name: str) -> None:
    options = opened_with(f"{name}=7000").options

    seconds = {
        "serverSelectionTimeoutMS": options.server_selection_timeout,
        "timeoutMS": options.timeout,
        "connectTimeoutMS": options.pool_options.connect_timeout,
    }
    assert seconds == {
        other: 7 if other == name else default / 1_000
        for other, default in DEFAULT_TIMEOUTS.items()
    }


@pytest.mark.parametrize("spelling", ["TIMEOUTMS", "timeoutms", "timeoutMS"])
def test_an_option_may_be_spelt_as_pymongo_takes_it(spelling: str) -> None:
    assert opened_with(f"{spelling}=2500").options.timeout == 2.5


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("mongodb://127.0.0.1", "registrations"),
        ("mongodb://127.0.0.1/", "registrations"),
        ("mongodb://127.0.0.1?replicaSet=rs0", "registrations"),
        ("mongodb://127.0.0.1/games", "games"),
        ("mongodb://127.0.0.1/games.users", "games"),
        ("mongodb://127.0.0.1/my%2Ddb?w=1", "my-db"),
        ("mongodb://127.0.0.1/games\n", "games"),
        ("mongodb://app:a%2Fb%3Fc@[::1]:27017,127.0.0.1/games?replicaSet=rs0", "games"),
        ("mongodb+srv://cluster0.example.net/games?retryWrites=true&w=majority", "games"),
    ],
)
def test_the_database_is_the_one_that_the_uri_names(uri: str, database: str) -> None:
    assert Address.read(uri).database == database


@pytest.mark.parametrize("name", ["a$b", "a b", "d" * 64, "a%2Fb"])
def test_a_name_that_no_database_can_have_is_refused(name: str) -> None:
    assert "is not a valid database name" in refusal(f"mongodb://127.0.0.1/{name}")


def test_the_control_plane_has_its_own_timeouts_and_pools_and_the_rest_of_the_uri() -> None:
    uri = f"{BASE}&timeoutMS=1000&maxPoolSize=1&appName=x&w=0&readPreference=secondary"

    given = control_options(Settings(mongo_uri=uri))

    assert given["database_uri"].get_secret_value() == f"{BASE}&appName=x"
    assert given["database"] == "db_control"


def test_a_uri_that_cannot_be_used_is_said_by_the_control_plane_and_to_no_producer() -> None:
    given = control_options(Settings(mongo_uri=f"{BASE}&frobnicate=1"))

    assert given["database_uri"] is None
    assert "frobnicate" in given["how_to_set"]


def test_with_a_uri_no_option_says_that_there_is_none() -> None:
    # Flower's Config tab shows all options of a worker.
    given = control_options(Settings(mongo_uri=BASE))

    assert "not set" not in str(given)
    assert "MONGO_URI is not set" in control_options(Settings())["how_to_set"]


def test_each_option_that_pymongo_knows_has_its_place_and_the_page_has_each() -> None:
    known = {name.lower() for name in (*HONOURED, *REPLACED, *REFUSED)}
    keywords_only = {"driver", "server_api"}
    page = DOCUMENT.read_text()

    assert set(URI_OPTIONS_VALIDATOR_MAP) - known == keywords_only
    rows = [
        *(
            f"| `{n}` | used{f'; must be at least {ms} ms' if ms else ''} |"
            for n, ms in HONOURED.items()
        ),
        *(f"| `{name}` | replaced: {why} |" for name, why in REPLACED.items()),
        *(f"| `{name}` | refused: {why} |" for name, why in REFUSED.items()),
    ]
    assert [row for row in rows if row not in page] == []


def test_a_client_keeps_no_source_files_of_those_that_open_it() -> None:
    linecache.clearcache()
    opened_with("")
    assert __file__ not in linecache.cache
