"""docs/runbooks/: what the pages name exists, and each alarm leads to a page."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
import click
import pytest
import yaml
from botocore import xform_name
from celery import Celery
from celery.bin.celery import celery as celery_command
from celery.worker.control import Panel

from app.celery import app
from app.settings import ApiSettings, FlowerSettings, FunctionSettings, Settings
from infra.deploy import ORDER
from infra.templates import path_of, read
from sqs_broker.observers.instruments import ALL, Kind, prometheus
from sqs_broker.observers.metrics import UNITS
from sqs_broker.tools import pause_metric
from sqs_broker.tools.commands import sqs
from tests.runbooks import (
    ANY,
    DIRECTORY,
    PARTS,
    RUN,
    Block,
    Page,
    Runbook,
    names,
    prints,
    programs_of,
)
from tests.unit.test_logging_docs import rows as rows_of_events

ROOT = Path(__file__).parents[2]
INDEX = Page("README")
PAGES = [Page(name) for name in names()]
EVERY = [INDEX, *PAGES]

#: Those that the issue of the runbooks asks for.
WANTED = {
    "age-rising", "clock-skew", "credentials-expired", "database-away", "dead-letters",
    "deploy-gone-wrong", "depth-rising", "disk-full", "duplicates-seen", "lost-leases", "poison",
    "redrive-gone-wrong", "secret-rotated", "throttled", "worker-deaf",
}  # fmt: skip

#: What a page may tell to use beside what the tests run: AWS's, a cluster's, the machine's.
OTHERS = {"aws", "chronyc", "df", "docker", "journalctl", "kubectl", "make", "systemctl",
          "timedatectl"}  # fmt: skip

#: Words that a person replaces, or that belong to AWS.
IN_CAPITALS = {"AWS_SESSION_TOKEN"}


@pytest.fixture(params=EVERY, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Page:
    found = request.param
    assert isinstance(found, Page)
    return found


def in_code(text: str) -> list[str]:
    """What is in backticks, without the blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


# The pages


def test_there_is_a_page_for_each_trouble() -> None:
    assert set(names()) == WANTED


@pytest.mark.parametrize("name", names())
def test_a_page_has_its_five_parts(name: str) -> None:
    page = Page(name)
    assert tuple(page.parts) == PARTS
    assert all(text.strip() for text in page.parts.values())
    assert page.sights
    assert [block for block in page.blocks("Show it") if block.is_run]
    assert list(page.blocks("Mend it"))


@pytest.mark.parametrize("name", names())
def test_a_page_says_what_its_commands_print(name: str) -> None:
    assert any(block.expected for block in Page(name).blocks() if block.is_run)


def test_the_index_leads_to_each_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+)\.md\)", INDEX.parts["By what you see"]))
    assert linked == set(names())


# Events, metrics, settings


def test_each_event_is_one_of_the_log(page: Page) -> None:
    known = rows_of_events()
    kinds = {event.partition(".")[0] for event in known if "." in event}
    named = {
        name
        for name in in_code(page.text)
        if re.fullmatch(r"[a-z_]+\.[a-z_]+", name) and name.partition(".")[0] in kinds
    }
    for pattern in re.findall(r'"event": "([^"]+)"', page.text):
        named |= set(re.sub(r"[()]", "", pattern).split("|")) - {"[a-z._]*"}
    assert named <= known.keys()


@pytest.mark.parametrize("name", names())
def test_the_row_of_the_log_has_nothing_but_events_errors_and_fields(name: str) -> None:
    dotted = [each for each in in_code(Page(name).sights.get("log", "")) if "." in each]
    assert set(dotted) <= rows_of_events().keys()


#: The series of each figure, with the labels that they have.
SERIES = {
    f"{each.prometheus}{suffix}": {prometheus(label) for label in each.labels} | own
    for each in ALL
    for suffix, own in (
        [("_bucket", {"le"}), ("_count", set()), ("_sum", set())]
        if each.kind is Kind.HISTOGRAM
        else [("", set[str]())]
    )
}


def test_each_metric_has_this_name_and_these_labels(page: Page) -> None:
    texts = (ROOT / "docs/metrics.md").read_text() + (ROOT / "app/errors.py").read_text()
    found = re.findall(r"\b((?:sqs_broker|messaging)_\w+)(?:\{([^}]*)\})?", page.text)
    for name, labels in found:
        if name in {label for own in SERIES.values() for label in own}:
            continue
        assert name in SERIES
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            assert label in SERIES[name]
            assert label == "error_type" or value in texts


@pytest.mark.parametrize("name", names())
def test_each_metric_of_cloudwatch_is_in_the_lines_or_in_a_template(name: str) -> None:
    templates = path_of("alarms").read_text() + path_of("dashboard").read_text()
    of_sqs = set(re.findall(r"\b(?:Approximate|NumberOf)\w+", templates))
    cell = Page(name).sights.get("CloudWatch", "")
    assert set(in_code(cell)) <= UNITS.keys() | {pause_metric.METRIC} | of_sqs


def test_each_setting_exists(page: Page) -> None:
    known = {
        prefix + name.upper()
        for settings in (Settings, FlowerSettings, ApiSettings, FunctionSettings)
        for prefix in (settings.model_config.get("env_prefix", ""),)
        for name in settings.model_fields
    }
    # `SQS_BACKOFF_MAX` or `SQS_CLIENT=curl`, but no single word, such as FAULT.
    named = {
        found[1]
        for each in in_code(page.text)
        if (found := re.fullmatch(r"([A-Z]+(?:_[A-Z]+)+)(?:=.*)?", each))
    }
    assert named <= known | IN_CAPITALS


# Alarms

ALARMS: dict[str, dict[str, Any]] = {
    name: each["Properties"]
    for name, each in read("alarms")["Resources"].items()
    if each["Type"].endswith("Alarm")
}
ALERTS: dict[str, dict[str, str]] = {
    rule["alert"]: rule["annotations"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def pages_of_alarms() -> dict[str, str]:
    """The page of each alarm, as the index says."""
    return dict(
        re.findall(
            r"^\| `(\w+)` \| \[[^\]]+\]\(([\w-]+)\.md\) \|$", INDEX.parts["By alarm"], re.MULTILINE
        )
    )


def test_the_index_has_each_alarm_and_each_alert() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", INDEX.parts["By alarm"], re.MULTILINE))
    assert rows == ALARMS.keys() | ALERTS.keys()


@pytest.mark.parametrize("alarm", ALARMS)
def test_what_an_alarm_sends_names_its_page(alarm: str) -> None:
    page = pages_of_alarms().get(alarm, "README")
    assert f"docs/runbooks/{page}.md" in ALARMS[alarm]["AlarmDescription"]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_the_page_of_its_alarm(alert: str) -> None:
    assert ALERTS[alert]["runbook"] == f"docs/runbooks/{pages_of_alarms()[alert]}.md"


@pytest.mark.parametrize(("alarm", "name"), pages_of_alarms().items())
def test_the_page_of_an_alarm_has_the_alarm(alarm: str, name: str) -> None:
    assert f"`{alarm}`" in Page(name).sights["alarm"]


@pytest.mark.parametrize("name", names())
def test_each_alarm_of_a_page_exists(name: str) -> None:
    assert set(re.findall(r"`(\w+)`", Page(name).sights.get("alarm", ""))) <= ALARMS.keys()


# Commands


def commands_of(page: Page) -> Iterator[str]:
    """Each line of the blocks, and each whole command in the text."""
    for block in page.blocks():
        yield from block.lines
    yield from (each for each in in_code(page.text) if each.startswith("celery -A "))


@pytest.fixture
def typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that commands of pages read."""
    monkeypatch.chdir(tmp_path)
    for name in ("worker.log", "letters.jsonl"):
        (tmp_path / name).touch()


@pytest.mark.usefixtures("typed_here")
def test_celery_accepts_each_command(page: Page) -> None:
    for line in commands_of(page):
        if programs_of(line)[0] == "celery":
            parse(shlex.split(line.replace(ANY, "X")))


def parse(words: list[str]) -> None:
    """Let Celery's own command line read a command, without running it."""
    assert words[:3] == ["celery", "-A", "app"]
    command: click.Command = celery_command
    # An app that needs no settings: what they are makes no difference to a command line.
    args, name, obj = words[3:], "celery", SimpleNamespace(app=Celery(set_as_current=False))
    if args[0] == "sqs":
        command, args, obj = sqs, args[1:], SimpleNamespace(app=app)
    while isinstance(command, click.Group):
        found, next_, args = command.resolve_command(click.Context(command, obj=obj), args)
        assert next_ is not None
        assert found is not None
        command, name = next_, found
    assert args or not command.params or name not in ("control", "inspect")
    command.make_context(name, list(args), obj=obj)
    if name in ("control", "inspect"):
        assert Panel.meta[args[0]].type == name


def test_the_commands_are_of_programs_that_a_page_may_use(page: Page) -> None:
    lines = [line for block in page.blocks() for line in block.lines]
    assert {program for line in lines for program in programs_of(line)} <= OTHERS | RUN


def test_no_block_has_commands_of_both_kinds(page: Page) -> None:
    for block in page.blocks():
        kinds = {program in RUN for line in block.lines for program in programs_of(line)}
        assert kinds == {block.is_run}


def test_each_call_of_aws_is_an_operation_with_these_parameters(page: Page) -> None:
    session = botocore.session.get_session()
    for line in commands_of(page):
        if programs_of(line)[0] != "aws":
            continue
        _, service, operation, *rest = re.sub(r"\$\([^)]*\)", "0", line).split()
        model = session.get_service_model(service)
        by_name = {xform_name(each, "-"): each for each in model.operation_names}
        assert operation in by_name, line
        members = model.operation_model(by_name[operation]).input_shape.members
        options = {word[2:].removeprefix("no-") for word in rest if word.startswith("--")}
        assert options <= {xform_name(each, "-") for each in members} | {"query", "output"}, line


def test_each_target_and_parameter_of_make_exists(page: Page) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {name for each in ORDER if path_of(each).exists() for name in read(each)["Parameters"]}
    for line in commands_of(page):
        if programs_of(line)[0] == "make":
            assert shlex.split(line)[1] in targets
            assert set(re.findall(r'[" ](\w+)=', line.partition("PARAMETERS=")[2])) <= known


# How an output is compared with a page


@pytest.mark.parametrize(
    ("line", "is_printed"),
    [
        ("jobs 120 0 …", True),
        ("jobs 12 0 …", False),
        ("… paused: …", True),
        ("…is paused…", True),
        ("paused", False),
        ("jobs 120", False),
    ],
)
def test_a_line_is_compared_as_a_whole_and_without_spaces(line: str, is_printed: bool) -> None:
    output = "QUEUE  VISIBLE\njobs       120   0  -\njobs is paused: x\n"
    assert prints(output, line) is is_printed


@pytest.fixture
def runbook(tmp_path: Path) -> Runbook:
    (tmp_path / "worker.log").write_text("jobs is paused\n")
    return Runbook(INDEX, os.environ, tmp_path, {"QUEUE": "jobs"}, patience=0)


def test_a_block_whose_output_is_that_of_the_page_passes(runbook: Runbook) -> None:
    printed = runbook.run_block(Block("grep QUEUE worker.log\n", ("QUEUE is …",)))
    assert printed == "jobs is paused\n"


def test_a_block_that_prints_something_else_fails(runbook: Runbook) -> None:
    with pytest.raises(AssertionError, match="no line is 'jobs is resumed'"):
        runbook.run_block(Block("grep QUEUE worker.log\n", ("QUEUE is resumed",)))


def test_a_command_that_cannot_do_its_work_fails(runbook: Runbook) -> None:
    with pytest.raises(AssertionError):
        runbook.run_block(Block("grep QUEUE nothing.log\n"))


@pytest.mark.parametrize(
    ("line", "is_look"),
    [
        ("celery -A app sqs dlq list --id ID", True),
        ("celery -A app inspect ping", True),
        ("grep x worker.log | sort", True),
        ("celery -A app sqs dlq redrive --dry-run", False),
        ("celery -A app sqs resume QUEUE", False),
        ("celery -A app control revoke ID", False),
    ],
)
def test_only_what_changes_nothing_is_repeated(line: str, is_look: bool) -> None:
    assert Block(f"{line}\n").is_look is is_look


def test_no_page_is_elsewhere() -> None:
    assert {file.name for file in DIRECTORY.iterdir()} == {f"{page.name}.md" for page in EVERY}
