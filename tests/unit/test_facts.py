"""The facts of a message are those of its delivery and its headers."""

from sqs_broker.rules.facts import Facts, facts_of
from sqs_broker.rules.provenance import Provenance, Source
from tests.unit.conftest import MakeDelivery


def test_the_facts_of_a_message_are_all_there(make_delivery: MakeDelivery) -> None:
    delivery = make_delivery(body="{}")
    provenance = Provenance("id-1", True, Source.JSON, 1, delivery.enqueued_at)
    headers = {"task": "add", "id": "id-1", "delivery": provenance}

    facts = facts_of(delivery, headers, 1.5)

    assert facts == Facts(delivery, "add", "id-1", Source.JSON, 1.5, headers)
    assert vars(facts).keys() == Facts.__dataclass_fields__.keys()
