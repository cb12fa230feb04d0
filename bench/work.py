"""What the measured tasks do: the same functions under every broker but ours and Node's.

Ours registers a user with the shipped `registerUser`; bench/node/consumer.mjs has the same work in
JavaScript.
"""

import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from pymongo import MongoClient, UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database

#: Seconds of a task that waits, and of one that fills a worker for long.
WAIT = 0.05
LONG = 20.0

#: Of a user's stock_id, user_id and user_info, by these names.
Work = Callable[..., None]


def noop(stock_id: str, user_id: str, user_info: dict[str, str]) -> None:
    """Nothing: what is measured is the way of the message."""


def register(stock_id: str, user_id: str, user_info: dict[str, str]) -> None:
    """One MongoDB upsert of a user, with the write concern of the server."""
    key, change = _upsert(stock_id, user_id, user_info)
    _users().update_one(key, change, upsert=True)


def wait(stock_id: str, user_id: str, user_info: dict[str, str]) -> None:
    """What asks another service waits for it."""
    time.sleep(WAIT)


def long(stock_id: str, user_id: str, user_info: dict[str, str]) -> None:
    """Keeps its slot for long, and does nothing."""
    time.sleep(LONG)


def delayed(stock_id: str, user_id: str, user_info: dict[str, str]) -> None:
    """Stores that it runs, then waits for BENCH_DELAY seconds."""
    _database()["runs"].insert_one({"user_id": user_id})
    time.sleep(float(os.environ["BENCH_DELAY"]))


WORKS: dict[str, Work] = {
    "noop": noop,
    "register": register,
    "wait": wait,
    "long": long,
    "delayed": delayed,
}


def register_many(users: Iterable[dict[str, Any]]) -> None:
    """One bulk write for all."""
    _users().bulk_write([UpdateOne(*_upsert(**user), upsert=True) for user in users], ordered=False)


def _upsert(
    stock_id: str, user_id: str, user_info: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    user = {
        "stock_id": stock_id,
        "user_id": user_id,
        "user_info": user_info,
        "index": 0,
        "money": 1_000_000,
        "loan_count": 0,
    }
    # The primary key is the cheapest unique index there is.
    return {"_id": f"{stock_id}:{user_id}"}, {"$setOnInsert": user}


def _users() -> Collection[dict[str, Any]]:
    return _database()["users"]


@cache
def _database() -> Database[dict[str, Any]]:
    # Made at the first task, so in the pool's process and never before a fork.
    client = MongoClient[dict[str, Any]](os.environ["MONGO_URI"])
    return client.get_default_database()
