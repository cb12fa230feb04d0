"""What several unit tests build."""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from time import monotonic
from typing import Any

import pytest

from app.broker.lease import Delivery, Lease

MakeDelivery = Callable[..., Delivery]
MakeLease = Callable[..., Lease]

#: Seconds of a lease.
VISIBILITY_TIMEOUT = 60


@pytest.fixture(scope="session")
def make_delivery() -> MakeDelivery:
    """Makes deliveries, each with a tag and ids of its own. Arguments replace fields."""
    numbers = count(1)

    def make(**changes: Any) -> Delivery:
        number = next(numbers)
        fields: dict[str, Any] = {
            "tag": f"tag-{number}",
            "queue": "jobs",
            "message_id": f"sqs-{number}",
            "receipt_handle": f"receipt-{number}",
            "body": "{}",
            "attributes": {},
            "count": 1,
            "enqueued_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            "received_at": monotonic(),
        }
        return Delivery(**fields | changes)

    return make


@pytest.fixture(scope="session")
def make_lease(make_delivery: MakeDelivery) -> MakeLease:
    """Makes a lease on a new delivery, as it is right after the receive."""

    def make(**changes: Any) -> Lease:
        delivery = make_delivery(**changes)
        return Lease(delivery, delivery.received_at + VISIBILITY_TIMEOUT)

    return make
