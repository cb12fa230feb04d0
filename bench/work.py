"""What the measured tasks do: the same functions under every broker."""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

from pymongo import MongoClient
from pymongo.collection import Collection


def noop(user_id: str) -> None:
    """Nothing: what is measured is the way of the message."""


def upsert(user_id: str) -> None:
    """One MongoDB upsert, with the write concern of the server."""
    document = {"nickname": "kim", "gender": "F", "money": 1_000_000}
    _users().update_one({"_id": user_id}, {"$set": document}, upsert=True)


WORKS: dict[str, Callable[[str], None]] = {"noop": noop, "upsert": upsert}


@cache
def _users() -> Collection[dict[str, Any]]:
    # Made at the first task, so in the pool's process and never before a fork.
    client = MongoClient[dict[str, Any]](os.environ["MONGO_URI"])
    return client.get_default_database()["bench"]
