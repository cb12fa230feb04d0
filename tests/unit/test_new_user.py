"""The document of a new user is the one that MongoEngine would write, byte for byte."""

from datetime import UTC, datetime
from typing import Any

import bson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app import payload
from app.messages import Provenance, Registration, Source
from app.models import RegistrationRecord, StoredPayload, User, UserInfo, id_of
from app.new_user import document
from app.settings import get_settings

whole = st.integers(0, 2**53)
ids = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
texts = st.text(st.characters(codec="utf-8"), max_size=12)

#: What producers send, in either spelling.
infos = st.fixed_dictionaries(
    {"nickname": st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)},
    optional={"gender": texts, "introduction": texts},
)
bodies = st.fixed_dictionaries(
    {"stockId": ids, "user_id": ids, "userInfo": infos},
    optional={"index": whole, "money": st.none() | whole, "loanCount": whole, "unknown": texts},
)
provenances = st.builds(
    Provenance,
    message_id=texts,
    has_producer_id=st.booleans(),
    source=st.sampled_from(Source),
    deliveries=st.integers(1, 2**31),
    enqueued_at=st.floats(0, 4e9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
)


def by_the_model(registration: Registration, provenance: Provenance, now: datetime) -> User:
    """The same user, by MongoEngine's classes."""
    starting_money = get_settings().starting_money
    return User(
        id=id_of(registration.stock_id, registration.user_id),
        stock_id=registration.stock_id,
        user_id=registration.user_id,
        user_info=UserInfo(**registration.user_info.model_dump()),
        index=registration.index,
        money=starting_money if registration.money is None else registration.money,
        loan_count=registration.loan_count,
        last_activity_time=now,
        registration=RegistrationRecord(
            message_id=provenance.message_id,
            source=provenance.source,
            deliveries=provenance.deliveries,
            enqueued_at=provenance.enqueued_at,
            registered_at=now,
            payload_hash=registration.payload_hash(),
        ),
        payload=StoredPayload(**payload.record(registration)),
    )


@settings(derandomize=True, database=None, max_examples=100)
@given(body=bodies, provenance=provenances)
@example(
    body={"stockId": "s", "user_id": "u", "userInfo": {"nickname": "김"}, "money": 2**31},
    provenance=Provenance("m", True, Source.SNS, 1, datetime(2026, 11, 22, tzinfo=UTC)),
)
def test_the_document_is_the_one_of_the_model_byte_for_byte(
    body: dict[str, Any], provenance: Provenance
) -> None:
    registration = Registration.model_validate(body)
    built = document(registration, provenance)

    wanted = by_the_model(registration, provenance, built["last_activity_time"])
    assert bson.encode(built) == bson.encode(wanted.to_mongo())


def test_the_document_has_every_field_of_the_model() -> None:
    registration = Registration.model_validate(
        {"stock_id": "s", "user_id": "u", "user_info": {"nickname": "kim"}}
    )
    built = document(registration, Provenance("m", True, Source.CELERY, 1, datetime.now(UTC)))

    for part, model in (
        (built, User),
        (built["user_info"], UserInfo),
        (built["registration"], RegistrationRecord),
        (built["payload"], StoredPayload),
    ):
        assert list(part) == [model._db_field_map[name] for name in model._fields_ordered]
