"""What this application knows of a message for `sqs trace`: its outcome, and whether it took
effect. Nothing of a user but its keys is read."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
import pymongo
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.messages import Message
from app.mongo import address_of
from app.settings import get_settings
from sqs_broker.errors import label
from sqs_broker.tools.trace import Fact

#: Seconds for all calls to MongoDB together. `users` has no index by message id.
TIMEOUT = 10


def trace(celery_app: Any, id_: str) -> Iterator[Fact]:
    """What the database says. Raises ClickException if it does not answer."""
    if (uri := get_settings().mongo_uri) is None:
        return
    address = address_of(uri.get_secret_value())
    try:
        with address.client() as client, pymongo.timeout(TIMEOUT):
            yield from _facts(client, address.database, id_)
    except PyMongoError as exc:
        raise click.ClickException(
            f"MongoDB does not answer or refuses a call: {label(exc)}"
        ) from exc


def _facts(client: MongoClient[Any], name: str, id_: str) -> Iterator[Fact]:
    database = client[name]
    if outcome := database["outcomes"].find_one({"_id": id_}, {"state": 1, "at": 1, "reason": 1}):
        why = f": {outcome['reason']}" if outcome.get("reason") else ""
        yield Fact("outcome", f"{outcome.get('state')}{why}", _utc(outcome.get("at")))
    created = {"registration.registered_at": 1, "registration.deliveries": 1}
    if user := database["users"].find_one({"registration.message_id": id_}, created):
        record = user["registration"]
        text = f"created a user, in delivery {record.get('deliveries')}"
        yield Fact("user", text, _utc(record.get("registered_at")))
    keys = [f"{kind.__name__}:{id_}" for kind in Message.__subclasses__()]
    for applied in database["once"].find({"_id": {"$in": keys}}, {"applied_at": 1}):
        kind = str(applied["_id"]).partition(":")[0]
        yield Fact("once", f"its effect is stored ({kind})", _utc(applied.get("applied_at")))


def _utc(at: Any) -> datetime | None:
    if not isinstance(at, datetime):
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
