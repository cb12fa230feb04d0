"""Flower pauses and resumes a queue on its Broker page, as the commands do, and shows pauses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.browser import SHOWN, browsing
from tests.acceptance.flower_process import (
    LOGIN,
    Flower,
    answer_of,
    flowering,
    login,
    status_of,
    with_token,
)
from tests.acceptance.test_commands import celery
from tests.acceptance.worker import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

expect.set_options(timeout=SHOWN)

PAGE = "/broker"
PATHS = ("/broker/pause", "/broker/resume")


@pytest.fixture(scope="module")
def flower(where: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flower]:
    with flowering(where.environment, tmp_path_factory.mktemp("flower")) as running:
        yield running


@pytest.fixture
def page(flower: Flower, tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path / "profile", LOGIN) as browser:
        yield browser.pages[0]


def control(where: Place) -> Any:
    return where.database.client[f"{where.database.name}_control"]


def paused(where: Place) -> list[tuple[str, str, str]]:
    found = control(where)["pauses"].find()
    return [(each["_id"], each["reason"], each["by"]) for each in found]


def test_an_operator_pauses_and_resumes_by_clicks(
    flower: Flower, page: Page, where: Place, tmp_path: Path
) -> None:
    queue = where.queues.name
    page.goto(flower.url + PAGE)
    row = page.locator(f"[id='{queue}']")
    row.locator("input[name=reason]").fill('it isn\'t built & "done"')
    row.locator("input[name=for]").fill("30m")
    row.locator(".pause").click()
    expect(page.locator("#said")).to_contain_text(f"{queue} is paused: it isn't built")
    expect(row.locator(".paused")).to_contain_text('it isn\'t built & "done" (Flower: kim, until')
    assert paused(where) == [(queue, 'it isn\'t built & "done"', "Flower: kim")]
    ran = celery(where.environment, tmp_path, "sqs", "queues", "--json")
    assert (
        'it isn\'t built & "done" (Flower: kim' in json.loads(ran.stdout.splitlines()[0])["paused"]
    )
    (first, *_) = flower.get("/api/queues/length").json["active_queues"]
    assert first["paused"].startswith("it isn't built")

    row.locator(".resume").click()
    expect(page.locator("#said")).to_contain_text(f"{queue} is resumed")
    expect(row.locator(".pause")).to_be_visible()
    assert paused(where) == []
    entries = [(each["action"], each["by"]) for each in control(where)["audit"].find().sort("at")]
    assert entries == [("pause", "Flower: kim"), ("resume", "Flower: kim")]


def test_a_pause_by_command_is_shown_and_ended_here(
    flower: Flower, where: Place, tmp_path: Path
) -> None:
    queue = where.queues.name
    ran = celery(where.environment, tmp_path, "sqs", "pause", queue, "--reason", "<b>deploy</b>")
    assert ran.returncode == 0, ran.stderr
    assert "&lt;b&gt;deploy" in flower.get(PAGE).text
    headers, fields = with_token(flower, PAGE)
    assert status_of(flower, "/broker/resume", headers, **fields, queue=queue) == 200
    assert paused(where) == []


def test_a_form_that_is_wrong_pauses_nothing(flower: Flower, where: Place) -> None:
    headers, fields = with_token(flower, PAGE)
    good = fields | {"queue": where.queues.name, "reason": "deploy"}
    for wrong, said in (
        ({"reason": " "}, "A pause needs a reason"),
        ({"for": "soon"}, "For: must be a number"),
        ({"for": "3650000d"}, "For: must be at most"),
        ({"queue": "nobody%s"}, "There is no such queue"),
    ):
        answer = answer_of(flower, "/broker/pause", headers, **good | wrong)
        assert (answer.status, said in answer.text) == (400, True)
    assert paused(where) == []


@pytest.mark.parametrize("path", PATHS)
def test_the_address_of_an_answer_leads_back_to_the_page(flower: Flower, path: str) -> None:
    assert flower.get(path).status == 302
    assert flower.get(path, login=None).status == 401


@pytest.mark.parametrize("path", PATHS)
def test_a_request_without_login_or_without_the_token_of_the_page_is_refused(
    flower: Flower, where: Place, path: str
) -> None:
    headers, fields = with_token(flower, PAGE)
    fields |= {"queue": where.queues.name, "reason": "deploy"}
    without = {name: value for name, value in headers.items() if name != "Authorization"}
    assert status_of(flower, path, without, **fields) == 401
    assert status_of(flower, path, login(), **fields | {"_xsrf": ""}) == 403
    assert status_of(flower, path, headers | {"Sec-Fetch-Site": "cross-site"}, **fields) == 403
    assert status_of(flower, path, headers | {"Origin": "https://evil.example"}, **fields) == 403
    assert paused(where) == []


def test_a_flower_that_is_read_only_shows_pauses_and_changes_none(
    where: Place, tmp_path: Path
) -> None:
    queue = where.queues.name
    celery(where.environment, tmp_path, "sqs", "pause", queue, "--reason", "deploy")
    with flowering(where.environment, tmp_path, "--read_only") as flower:
        shown = flower.get(PAGE).text
        assert "paused: deploy" in shown
        assert "Resume" not in shown
        headers, fields = with_token(flower, "/dead-letters")
        for path in PATHS:
            more = {"queue": queue, "reason": "again"}
            assert status_of(flower, path, headers, **fields, **more) == 403
    assert [reason for _, reason, _ in paused(where)] == ["deploy"]
