"""Whether MongoDB takes what the tasks write, found out by writing it.

A server may answer `hello` as a primary and take no write: its disk is full, writes are blocked,
rights were revoked, no majority is there, a validator refuses the documents. So the probe does
what the tasks do, with their client's settings: a user is written and taken back, and a record is
kept in a transaction that a majority has to acknowledge.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pymongo
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from app.messages import Provenance, Registration, Source
from app.models import User
from app.mongo import Client, address_of, open_client
from app.once import OnceRecord, in_transaction
from app.registration import write
from app.schema import find_faults
from sqs_broker.errors import label

#: Seconds for all of one probe. With the pauses between probes they are less than the 10 s within
#: which a worker resumes.
PROBE_TIMEOUT = 3.0


class Probe:
    """Looks at MongoDB with a client of its own, which is kept: at the server's limit of
    connections there is no second one to be had. Used by one thread of one process."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Client | None = None

    def find_error(self) -> str | None:
        """Write as the tasks do: None, or why not. Never raises."""

        def write(database: Database[dict[str, Any]]) -> str | None:
            if (fault := _first_fault(database)) is None:
                try_writes(database)
            return fault

        return self._try(write)

    def find_fault(self) -> str | None:
        """Only look at the collections and their indexes: None, or what is wrong. Never raises;
        that MongoDB does not answer is no fault of theirs."""
        fault: list[str | None] = [None]

        def look(database: Database[dict[str, Any]]) -> None:
            fault[0] = _first_fault(database)

        self._try(look)
        return fault[0]

    def close(self) -> None:
        """Close the client; the next call opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _try(self, look: Callable[[Database[dict[str, Any]]], str | None]) -> str | None:
        try:
            if self._client is None:
                self._client = open_client(self._uri)
            with pymongo.timeout(PROBE_TIMEOUT):
                return look(self._client[address_of(self._uri).database])
        except Exception as exc:
            # Broad on purpose: what keeps the probe from MongoDB keeps the tasks from it too.
            if not isinstance(exc, OperationFailure):
                # It may know the members of another time, or have a connection that is of no use.
                self.close()
            return label(exc)


def try_writes(database: Database[dict[str, Any]]) -> None:
    """Write what the tasks write. Raises what pymongo raises if it is not taken. Nothing stays."""
    with database.client.start_session() as session:
        _try_a_user(database, session)
        in_transaction(session, lambda session: _try_a_record(database, session))


def _try_a_user(database: Database[dict[str, Any]], session: ClientSession) -> None:
    """Write a user as a registration does, and take it back before anybody can see it."""
    registration = Registration.model_validate(
        {"stock_id": "probe", "user_id": uuid.uuid4().hex, "user_info": {"nickname": "probe"}}
    )
    provenance = Provenance("probe", True, Source.CELERY, 1, datetime.now(UTC))
    with session.start_transaction():
        users = database[User._meta["collection"]]
        written = write(users, [(registration, provenance)], session)
        session.abort_transaction()
    for refused in written.refused.values():
        raise refused


def _try_a_record(database: Database[dict[str, Any]], session: ClientSession) -> None:
    """Write a record as `@once` does; it is gone again when the transaction commits."""
    key = {"_id": f"probe:{uuid.uuid4().hex}"}
    records = database[OnceRecord._meta["collection"]]
    records.find_one(key, session=session)
    records.insert_one(key | {"forget_at": datetime.now(UTC)}, session=session)
    records.delete_one(key, session=session)


def _first_fault(database: Database[dict[str, Any]]) -> str | None:
    return next(map(str, find_faults(database)), None)
