"""The document of a new user, as MongoDB stores it.

It is built as a plain dict. MongoEngine would build an instance first, which takes ten times as
long. `models.User` remains the model: tests hold that both ways give equal documents.
"""

from datetime import UTC, datetime
from typing import Any

from bson import Int64

from app.hashes import hash_and_record
from app.messages import Provenance, Registration
from app.models import id_of
from app.settings import get_settings


def key_of(registration: Registration) -> dict[str, Any]:
    """The fields that identify a user."""
    return {"stock_id": registration.stock_id, "user_id": registration.user_id}


def document(registration: Registration, provenance: Provenance) -> dict[str, Any]:
    """The user that a registration creates."""
    info, money, now = registration.user_info, registration.money, datetime.now(UTC)
    payload_hash, payload = hash_and_record(registration)
    return {
        "_id": id_of(registration.stock_id, registration.user_id),
        **key_of(registration),
        "user_info": {
            "nickname": info.nickname,
            "gender": info.gender,
            "introduction": info.introduction,
        },
        "index": Int64(registration.index),
        "money": Int64(get_settings().starting_money if money is None else money),
        "loan_count": Int64(registration.loan_count),
        "last_activity_time": now,
        "registration": {
            "message_id": provenance.message_id,
            "source": provenance.source.value,
            "deliveries": provenance.deliveries,
            "enqueued_at": provenance.enqueued_at,
            "registered_at": now,
            "payload_hash": payload_hash,
        },
        "payload": payload,
    }
