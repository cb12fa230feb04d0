"""Flower's page "Dead letters" in a real browser, and requests that it must refuse."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from sqs_broker.control.store import Store
from sqs_broker.options import ControlOptions
from sqs_broker.rules import attempts
from tests.acceptance.browser import SHOWN, browsing
from tests.acceptance.flower_process import (
    LOGIN,
    START_SECONDS,
    Flower,
    answer_of,
    flowering,
    login,
    started,
    status_of,
    with_token,
)
from tests.acceptance.worker import Place
from tests.integration.test_dlq_commands import body, bury, next_second, received
from tests.services import Queues

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

expect.set_options(timeout=SHOWN)

IMAGES = Path(__file__).parents[2] / "docs" / "images"
NICKNAME = "marker-of-a-nickname"
PAGE = "/dead-letters"
PATHS = ("read", "confirm", "run", "show", "edit")


@pytest.fixture(scope="module")
def flower(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    """Flower, with five dead letters behind it."""
    for number in range(3):
        bury(where.queues, body(f"conflict-{number}", nickname=NICKNAME), reason="it was there")
    for number in range(2):
        bury(where.queues, body(f"late-{number}", nickname=NICKNAME), reason="it took too long")
    next_second(where.queues)
    with flowering(where.environment, tmp_path_factory.mktemp("flower")) as running:
        yield running


@pytest.fixture
def page(flower: Flower, tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path / "profile", LOGIN) as browser:
        yield browser.pages[0]


def is_over(page: Page, job: str) -> None:
    """Returns once this job is over: the page loads itself again until then."""
    expect(page.locator("#job")).to_contain_text(f"{job} by Flower: kim")
    expect(page.locator("#job")).to_have_attribute("data-over", "yes")


def waiting(queues: Queues) -> list[str]:
    """The ids in the queue, which stay hidden."""
    found: list[str] = []
    while messages := queues.client.receive_message(
        QueueUrl=queues.url, MaxNumberOfMessages=10, VisibilityTimeout=600
    ).get("Messages"):
        found += [json.loads(message["Body"])["id"] for message in messages]
    return sorted(found)


def test_an_operator_reads_looks_redrives_and_deletes(
    flower: Flower, page: Page, where: Place, pytestconfig: pytest.Config
) -> None:
    page.goto(f"{flower.url}/broker")
    page.locator("#dead-letters").click()
    expect(page.locator("#snapshot")).to_have_count(0)
    page.locator("#read").click()
    is_over(page, "Read")
    expect(page.locator("#snapshot")).to_contain_text("5 of about 5 were seen")
    expect(page.locator("#reasons")).to_contain_text("it took too long")
    if pytestconfig.getoption("--screenshots"):
        page.screenshot(path=IMAGES / "flower-dead-letters.png", animations="disabled")

    page.locator("#letter-table button", has_text="Show").first.click()
    expect(page.locator("#letter")).to_contain_text("(hidden)")
    expect(page.locator("#letter")).not_to_contain_text(NICKNAME)
    assert flower.log_lines("dead_letter.shown") == []
    page.locator("#plain").click()
    expect(page.locator("#letter")).to_contain_text(NICKNAME)
    (line,) = flower.log_lines("dead_letter.shown")
    assert line["reason"] == "Flower: kim"

    page.goto(f"{flower.url}/dead-letters")
    page.locator("input[aria-label=late-1]").check()
    page.locator("#dry-run").click()
    is_over(page, "Dry run")
    expect(page.locator("#job")).to_contain_text("1 would be redriven")
    page.locator("input[aria-label=late-1]").check()
    page.locator("#redrive").click()
    expect(page.locator("#number")).to_have_text("1")
    page.locator("#typed").fill("2")
    page.locator("#run").click()
    expect(page.locator("body")).to_contain_text("The number is not the right one")
    page.go_back()
    page.locator("#typed").fill("1")
    page.locator("#run").click()
    is_over(page, "Redrive")
    expect(page.locator("#job")).to_contain_text("1 redriven")
    assert waiting(where.queues) == ["late-1"]

    page.locator("input[name=reason]").fill("it was there")
    page.locator("#read").click()
    is_over(page, "Read")
    expect(page.locator("#snapshot")).to_contain_text("3 match")
    page.locator("#all").check()
    page.locator("#purge").click()
    page.locator("#typed").fill("3")
    page.locator("#run").click()
    is_over(page, "Purge")
    expect(page.locator("#job")).to_contain_text("3 deleted")
    left = [json.loads(letter["Body"])["id"] for letter in where.queues.dead_letters()]
    assert left == ["late-0"]
    audit = where.database.client[f"{where.database.name}_control"]["audit"]
    found = [(entry["action"], entry["by"]) for entry in audit.find().sort("at", 1)]
    assert found[0] == ("show", "Flower: kim")
    assert {action for action, _ in found} == {"show", "redrive", "purge"}
    assert NICKNAME not in str(list(audit.find()))


def test_an_operator_edits_a_dead_letter(
    flower: Flower, page: Page, where: Place, tmp_path: Path
) -> None:
    bury(where.queues, body("edit-0", nickname=NICKNAME), reason='it isn\'t "short" & good')
    next_second(where.queues)
    page.goto(flower.url + PAGE)
    page.locator("input[name=id]").fill("edit-0")
    page.locator("input[name=reason]").fill('isn\'t "short" &')
    page.locator("#read").click()
    is_over(page, "Read")
    page.locator("#letter-table button", has_text="Show").click()
    expect(page.locator("#body")).to_have_count(0)
    page.locator("#plain").click()
    text = page.locator("#body").input_value()
    page.locator("#body").fill(text.replace("registerUser", "nobody"))
    page.locator("#check").click()
    expect(page.locator("body")).to_contain_text("A worker would not run it")
    page.go_back()
    page.locator("#body").fill(text.replace(NICKNAME, "<b>kim</b>"))
    page.locator("#check").click()
    expect(page.locator("#changed")).to_contain_text("data.userInfo.nickname")
    assert "edit-0" not in waiting(where.queues)
    page.locator("#send").click()
    expect(page.locator("#edited")).to_contain_text("redriven. The original is in")
    shown = str(page.locator("#edited").text_content())
    kept = Path(shown.partition("The original is in ")[2].partition(" on Flower")[0])
    assert NICKNAME in kept.read_text()
    (sent,) = [
        each for each in received(where.queues) if json.loads(each["Body"])["id"] == "edit-0"
    ]
    assert json.loads(sent["Body"])["data"]["userInfo"]["nickname"] == "<b>kim</b>"
    audit = where.database.client[f"{where.database.name}_control"]["audit"]
    (entry,) = audit.find({"action": "edit"})
    assert (entry["by"], entry["changed"]) == ("Flower: kim", ["data.userInfo.nickname"])
    assert NICKNAME not in str(list(audit.find()))


def test_show_lists_each_failed_attempt_although_the_rest_is_masked(
    flower: Flower, page: Page, where: Place
) -> None:
    bury(where.queues, body("tried-0", nickname=NICKNAME), reason="it failed thrice")
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    uri, name = where.environment["MONGO_URI"], f"{where.database.name}_control"
    store = Store(ControlOptions.read({"database_uri": uri, "database": name}))
    for number, error in enumerate(("AutoReconnect", "Timeout"), 1):
        runs = (attempts.Run(number, at.replace(minute=number), error),)
        record = attempts.Record(frozenset({number}), runs=runs, id="tried-0")
        store.add_attempts({"sqs-1": record})
    store.close()
    next_second(where.queues)
    page.goto(flower.url + PAGE)
    page.locator("input[name=id]").fill("tried-0")
    page.locator("#read").click()
    is_over(page, "Read")
    page.locator("#letter-table button", has_text="Show").click()
    expect(page.locator("#letter")).not_to_contain_text(NICKNAME)
    rows = page.locator("#attempts tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text(re.compile(r"2026-01-02T03:01:05.*AutoReconnect\s*1"))
    expect(rows.nth(1)).to_contain_text(re.compile(r"2026-01-02T03:02:05.*Timeout\s*2"))
    expect(rows.nth(2)).to_contain_text("TransientError")


@pytest.mark.parametrize("path", PATHS)
def test_a_request_without_login_or_without_the_token_of_the_page_is_refused(
    flower: Flower, path: str
) -> None:
    headers, fields = with_token(flower, PAGE)
    without = {name: value for name, value in headers.items() if name != "Authorization"}
    assert status_of(flower, f"{PAGE}/{path}", without, **fields) == 401
    assert status_of(flower, f"{PAGE}/{path}", login()) == 403
    assert (
        status_of(flower, f"{PAGE}/{path}", headers | {"Sec-Fetch-Site": "cross-site"}, **fields)
        == 403
    )
    assert (
        status_of(flower, f"{PAGE}/{path}", headers | {"Origin": "https://evil.example"}, **fields)
        == 403
    )
    assert flower.get("/dead-letters", login=None).status == 401


def test_a_filter_that_is_wrong_is_refused(flower: Flower) -> None:
    headers, fields = with_token(flower, PAGE)
    for wrong, said in (
        ({"match": "(a+)+"}, "Regular expression: it could take too long"),
        ({"older_than": "soon"}, "Older than: must be a number"),
    ):
        answer = answer_of(flower, f"{PAGE}/read", headers, **fields, **wrong)
        assert (answer.status, said in answer.text) == (400, True)


@pytest.mark.parametrize("path", PATHS)
def test_the_address_of_an_answer_leads_back_to_the_page(flower: Flower, path: str) -> None:
    assert flower.get(f"{PAGE}/{path}").status == 302
    assert flower.get(f"{PAGE}/{path}", login=None).status == 401


def test_a_read_that_finds_none_says_so(flower: Flower) -> None:
    headers, fields = with_token(flower, PAGE)
    assert status_of(flower, f"{PAGE}/read", headers, id="<nobody>", **fields) == 200
    flower.wait_for(
        lambda: 'data-over="yes"' in flower.get(PAGE).text, START_SECONDS, "the end of the read"
    )
    text = flower.get(PAGE).text
    assert "0 match (id: &lt;nobody&gt;), as Flower: kim read them" in text
    assert 'id="letter-table"' not in text


def test_without_a_login_the_page_has_no_button(where: Place, tmp_path: Path) -> None:
    with started(where.environment, tmp_path) as flower:
        flower.wait_until_listening()
        text = flower.get(PAGE, login=None).text
    assert "Without a login it reads and changes nothing" in text
    assert 'id="read"' not in text


def test_all_of_a_snapshot_that_is_not_the_present_one_is_refused(
    where: Place, flower: Flower
) -> None:
    before = len(where.queues.dead_letters())
    headers, fields = with_token(flower, PAGE)
    stale = {"scope": "all", "snapshot": "2026-01-02T03:04:05+00:00"}
    for typed in ("0", str(before)):
        for action in ("redrive", "purge"):
            more = fields | stale | {"action": action, "typed": typed}
            assert status_of(flower, f"{PAGE}/run", headers, **more) == 409
            assert status_of(flower, f"{PAGE}/confirm", headers, **more) == 409
    assert len(where.queues.dead_letters()) == before


def test_a_flower_that_is_read_only_changes_nothing(where: Place, tmp_path: Path) -> None:
    before = len(where.queues.dead_letters())
    with flowering(where.environment, tmp_path, "--read_only") as flower:
        headers, fields = with_token(flower, PAGE)
        for action in ("redrive", "purge"):
            more = {"action": action, "scope": "all", "typed": "0"}
            assert status_of(flower, f"{PAGE}/run", headers, **fields, **more) == 403
            assert status_of(flower, f"{PAGE}/confirm", headers, **fields, **more) == 403
        edit = {"letter": "x", "body": "{}", "send": "yes"}
        assert status_of(flower, f"{PAGE}/edit", headers, **fields, **edit) == 403
        assert 'id="redrive"' not in flower.get("/dead-letters").text
    assert len(where.queues.dead_letters()) == before
