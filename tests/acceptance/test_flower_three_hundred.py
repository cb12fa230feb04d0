"""300 dead letters of five kinds in Flower, in a real browser: what is chosen moves, byte for byte,
and the rest stays."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.acceptance.browser import SHOWN, browsing
from tests.acceptance.flower_process import LOGIN, flowering
from tests.acceptance.test_flower_letters import is_over
from tests.acceptance.worker import Place
from tests.integration.test_dlq_commands import attributes_of, body, bury, next_second, received

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

expect.set_options(timeout=SHOWN)

EACH = 60

#: The reason of each kind, and the attributes that its producer had sent.
KINDS: dict[str, dict[str, Any]] = {
    "it was there": {},
    "it took too long": {"tenant": {"DataType": "String", "StringValue": "정보 1"}},
    "the service was away": {
        f"n{number}": {"DataType": "Number", "StringValue": str(number)} for number in range(10)
    },
    "a binary one": {"signature": {"DataType": "Binary", "BinaryValue": bytes(range(256))}},
    "both": {
        "kind.of": {"DataType": "String.own", "StringValue": "\t"},
        "bytes": {"DataType": "Binary.own", "BinaryValue": b"\0"},
    },
}


@pytest.fixture
def buried(where: Place) -> dict[str, list[str]]:
    """The bodies by reason."""
    bodies: dict[str, list[str]] = {}
    for place, (reason, attributes) in enumerate(KINDS.items()):
        bodies[reason] = [body(f"kind-{place}-{number}") for number in range(EACH)]
        for text in bodies[reason]:
            bury(where.queues, text, reason=reason, attributes=attributes)
    next_second(where.queues)
    return bodies


def test_what_matches_is_redriven_byte_for_byte_and_the_rest_stays(
    where: Place, buried: dict[str, list[str]], tmp_path: Path
) -> None:
    chosen = ("the service was away", "a binary one")
    with (
        flowering(where.environment, tmp_path) as flower,
        browsing(tmp_path / "profile", LOGIN) as browser,
    ):
        page = browser.pages[0]
        for reason in chosen:
            page.goto(f"{flower.url}/dead-letters")
            page.locator("input[name=reason]").fill(reason)
            page.locator("#read").click()
            is_over(page, "Read")
            expect(page.locator("#snapshot")).to_contain_text(f"{EACH} match")
            page.locator("#all").check()
            page.locator("#redrive").click()
            expect(page.locator("#number")).to_have_text(str(EACH))
            page.locator("#typed").fill(str(EACH))
            page.locator("#run").click()
            is_over(page, "Redrive")
            expect(page.locator("#job")).to_contain_text(f"{EACH} redriven")

    moved = received(where.queues)
    expected = Counter((text, repr(KINDS[reason])) for reason in chosen for text in buried[reason])
    assert Counter((each["Body"], repr_of(each)) for each in moved) == expected
    left = Counter(letter["Body"] for letter in where.queues.dead_letters())
    assert left == Counter(
        text for reason, texts in buried.items() if reason not in chosen for text in texts
    )


def repr_of(message: Any) -> str:
    """Its attributes, in the order in which the kinds have them."""
    found = attributes_of(message) if message.get("MessageAttributes") else {}
    for attributes in KINDS.values():
        if found == attributes:
            return repr(attributes)
    return repr(found)
