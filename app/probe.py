"""Finds out whether MongoDB accepts the writes of the tasks, by trying them.

A server may answer `hello` as a primary and still accept no write: its disk is full, writes are
blocked, rights were revoked, there is no majority, or a validator refuses the documents. So the
probe writes as the tasks do, with the same client options: it writes a user and rolls that back,
and it writes a record in a transaction that a majority must acknowledge.
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
from app.registration import Pair, insert, upsert
from app.schema import find_faults
from sqs_broker.errors import label

#: Seconds for one whole probe. Together with the pause between probes this is less than the 10 s
#: within which a worker resumes.
PROBE_TIMEOUT = 3.0


class Probe:
    """Probes MongoDB with its own client. The client is kept, because a new one could not connect
    when the server's limit of connections is reached. For one thread of one process."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Client | None = None

    def find_error(self) -> str | None:
        """Try the writes of the tasks. Return None if they succeed, or the error. Never raises."""

        def write(database: Database[dict[str, Any]]) -> str | None:
            if (fault := _first_fault(database)) is None:
                try_writes(database)
            return fault

        return self._try(write)

    def find_fault(self) -> str | None:
        """Check the collections and their indexes without a write. Return the first fault, or None.
        Never raises. If MongoDB does not answer, that is not a fault."""
        fault: list[str | None] = [None]

        def check(database: Database[dict[str, Any]]) -> None:
            fault[0] = _first_fault(database)

        self._try(check)
        return fault[0]

    def close(self) -> None:
        """Close the client. The next call opens a new one."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _try(self, check: Callable[[Database[dict[str, Any]]], str | None]) -> str | None:
        try:
            if self._client is None:
                self._client = open_client(self._uri)
            with pymongo.timeout(PROBE_TIMEOUT):
                return check(self._client[address_of(self._uri).database])
        except Exception as exc:
            # Broad on purpose: any error of the probe would also fail the tasks.
            if not isinstance(exc, OperationFailure):
                # The client may know only former members, or have an unusable connection.
                self.close()
            return label(exc)


def try_writes(database: Database[dict[str, Any]]) -> None:
    """Try the writes of the tasks, and leave nothing. Raises pymongo's errors if they fail."""
    with database.client.start_session() as session:
        _try_a_user(database, session)
        in_transaction(session, lambda session: _try_a_record(database, session))


def _try_a_user(database: Database[dict[str, Any]], session: ClientSession) -> None:
    """Write users as registrations do, and roll that back before anybody can see it."""
    with session.start_transaction():
        users = database[User._meta["collection"]]
        for write in (insert, upsert):
            for refused in write(users, [_pair()], session).refused.values():
                raise refused
        session.abort_transaction()


def _pair() -> Pair:
    registration = Registration.model_validate(
        {"stock_id": "probe", "user_id": uuid.uuid4().hex, "user_info": {"nickname": "probe"}}
    )
    return registration, Provenance("probe", True, Source.CELERY, 1, datetime.now(UTC))


def _try_a_record(database: Database[dict[str, Any]], session: ClientSession) -> None:
    """Write a record as `@once` does, and delete it in the same transaction."""
    key = {"_id": f"probe:{uuid.uuid4().hex}"}
    records = database[OnceRecord._meta["collection"]]
    records.find_one(key, session=session)
    records.insert_one(key | {"forget_at": datetime.now(UTC)}, session=session)
    records.delete_one(key, session=session)


def _first_fault(database: Database[dict[str, Any]]) -> str | None:
    return next(map(str, find_faults(database)), None)
