"""What mongod knows of a worker: the commands it got, and when each user was stored."""

from collections import Counter
from typing import Any

from pymongo import MongoClient

from bench.results import Storage

#: What a driver asks by itself, and what the benchmark asks; no message causes them.
HOUSEKEEPING = frozenset(
    {
        "hello", "isMaster", "ismaster", "ping", "serverStatus", "buildInfo", "endSessions",
        "listDatabases", "listCollections", "listIndexes", "createIndexes", "create", "drop",
        "dropDatabase", "count", "replSetGetStatus", "replSetHeartbeat", "saslStart",
        "saslContinue", "refreshSessions", "refreshSessionsInternal",
    }
)  # fmt: skip

Client = MongoClient[dict[str, Any]]


def commands(client: Client) -> Counter[str]:
    """Commands so far, by name: each is one round trip."""
    told = client.admin.command("serverStatus", metrics=1)["metrics"]["commands"]
    return caused(told)


def caused(told: dict[str, Any]) -> Counter[str]:
    """The commands that messages cause, of `metrics.commands` of serverStatus."""
    return Counter(
        {
            name: int(counts["total"])
            for name, counts in told.items()
            if isinstance(counts, dict) and "total" in counts and name not in HOUSEKEEPING
        }
    )


def stored_at(client: Client, database: str) -> dict[str, float]:
    """When each user was inserted, in seconds since the epoch, by mongod's own clock."""
    inserts = client.local["oplog.rs"].find(
        {"op": "i", "ns": f"{database}.users"}, {"wall": 1, "o.user_id": 1}
    )
    return {entry["o"]["user_id"]: entry["wall"].timestamp() for entry in inserts}


def storage(client: Client, database: str) -> Storage:
    """What the users of a database take."""
    # The sizes of files are those of the last checkpoint, which this makes.
    client.admin.command("fsync")
    told = client[database].command("collStats", "users")
    return Storage(told["count"], told["size"], told["storageSize"], told["totalIndexSize"])
