"""A registration becomes a user, once. No Celery, no SQS, no web."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from mongoengine.errors import NotUniqueError

from app.errors import Conflict, TransientError
from app.messages import Provenance, Registration
from app.models import RegistrationRecord, User, UserInfo, connect
from app.settings import get_settings


class Result(StrEnum):
    """What a registration led to. A conflict is not a result: it raises."""

    REGISTERED = "registered"
    """The user is new."""
    ALREADY_REGISTERED = "already registered"
    """The same registration came before: nothing was changed."""


@dataclass(frozen=True)
class Registered:
    """The user is stored, by this message or by an equal one before it."""

    result: Result
    stock_id: str
    user_id: str


def register(registration: Registration, provenance: Provenance) -> Registered:
    """Store the user of this registration exactly once, in one round trip to MongoDB.

    The unique index on (stock_id, user_id) is the idempotency key: the upsert writes where there
    is nobody and reads where there is somebody, whatever runs at the same instant. Raises
    Conflict where another payload has registered this user; the first one stays.
    """
    connect()
    before = _insert_or_find(registration, provenance)
    if before is None:
        result = Result.REGISTERED
    elif before.registration.payload_hash == registration.payload_hash():
        result = Result.ALREADY_REGISTERED
    else:
        raise Conflict("the user is registered already, with another payload")
    return Registered(result, registration.stock_id, registration.user_id)


def _insert_or_find(registration: Registration, provenance: Provenance) -> User | None:
    now = datetime.now(UTC)
    money = registration.money
    key = {"stock_id": registration.stock_id, "user_id": registration.user_id}
    try:
        found: User | None = User.objects(**key).modify(
            upsert=True,
            new=False,
            set_on_insert__user_info=UserInfo(**registration.user_info.model_dump()),
            set_on_insert__index=registration.index,
            set_on_insert__money=get_settings().starting_money if money is None else money,
            set_on_insert__loan_count=registration.loan_count,
            set_on_insert__last_activity_time=now,
            set_on_insert__registration=RegistrationRecord(
                message_id=provenance.message_id,
                source=provenance.source,
                deliveries=provenance.deliveries,
                enqueued_at=provenance.enqueued_at,
                registered_at=now,
                payload_hash=registration.payload_hash(),
            ),
        )
    except NotUniqueError:
        # Two upserts of one key at one instant: MongoDB lets one insert and may refuse the other.
        found = User.objects(**key).first()
        if found is None:
            raise TransientError("the user vanished between two reads") from None
    return found
