"""When a message was first sent. SQS says when the present copy of it was sent; a postponed message
is a copy, so it carries the first time in an attribute."""

from datetime import UTC, datetime

from sqs_broker.limits import MOST_ATTRIBUTES
from sqs_broker.rules.dead_letter import Attributes, size
from sqs_broker.rules.lease import Delivery

#: The name of the attribute. Its value is a time as SQS gives it: milliseconds since 1970.
ATTRIBUTE = "celery-sent-at"


def first_sent(delivery: Delivery) -> datetime:
    """When the producer sent the message, in UTC. A time after SQS's own is not believed."""
    sent_at = delivery.enqueued_at.astimezone(UTC)
    try:
        carried = int(delivery.attributes[ATTRIBUTE]["StringValue"])
        return min(datetime.fromtimestamp(carried / 1000, UTC), sent_at)
    except (KeyError, ValueError, OverflowError, OSError):
        return sent_at


def of_copy(delivery: Delivery, limit: int) -> Attributes:
    """The attributes of a copy: the original ones, and the time. If SQS would refuse the copy with
    it, because it has ten attributes or more than `limit` bytes, the time is left out."""
    sent_at = round(first_sent(delivery).timestamp() * 1000)
    dated = {
        **delivery.attributes,
        ATTRIBUTE: {"DataType": "Number", "StringValue": str(sent_at)},
    }
    if len(dated) > MOST_ATTRIBUTES or size(delivery.body, dated) > limit:
        return dict(delivery.attributes)
    return dated
