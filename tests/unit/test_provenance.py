"""Provenance: what a task is told is the same in another process."""

import pickle
from datetime import UTC, datetime

import pytest

from sqs_broker.rules.provenance import Provenance, Source


@pytest.mark.parametrize("source", list(Source))
def test_it_is_the_same_in_another_process(source: Source) -> None:
    # SQS counts in milliseconds.
    sent_at = datetime.fromtimestamp(1_767_323_045_678 / 1000, UTC)
    sent = Provenance("id-1", True, source, 3, sent_at, attempt=2)
    read = pickle.loads(pickle.dumps(sent))
    assert read == sent
    assert read.source is source
    assert read.enqueued_at.tzinfo is UTC


def test_what_is_made_quickly_is_the_same() -> None:
    fields = {name: object() for name in Provenance.__dataclass_fields__}

    made = Provenance.made(**fields)  # type: ignore[arg-type]  # only who is where counts

    assert made == Provenance(**fields)  # type: ignore[arg-type]
    assert vars(made) == fields
