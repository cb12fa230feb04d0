"""Reads what is recorded about received messages: which of their deliveries were failed runs."""

from collections.abc import Collection, Mapping

from sqs_broker.rules.attempts import AttemptStore, Record

#: Of a message about which nothing is recorded.
NOTHING = Record()


def records_of(
    received: Collection[tuple[str, int]], attempts: AttemptStore | None
) -> Mapping[str, Record]:
    """The record of each message, by its MessageId; empty without a store. `received`: for each
    message its MessageId, and how often SQS has delivered it. The store is read once, and only if a
    message was delivered before."""
    if attempts is None:
        return {}
    again = [id_ for id_, count in received if count > 1]
    found = attempts.read(again) if again else {}
    return {id_: found.get(id_, NOTHING) for id_, _ in received}
