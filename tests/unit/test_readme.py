"""What README.md and docs/ say of the code is what the code says."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings

from app.settings import ApiSettings, FlowerSettings, FunctionSettings, Settings
from sqs_broker.observers.metrics import UNITS
from sqs_broker.options import Options, Role

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
OPTIONS = (ROOT / "docs" / "options.md").read_text()
#: Options whose field has another name.
OPTION = {
    "queues": "predefined_queues",
    "uri": "database_uri",
    "client_config": "client-config",
    "arn": "sts_role_arn",
    "seconds": "sts_token_timeout",
    "early": "sts_token_buffer_time",
}
#: Fields that hold several options.
GROUPS = ("policy", "canvas", "control", "role")


def shown(options: Any) -> dict[str, str]:
    """The fields of a dataclass with their defaults, as the page shows them."""
    return {f.name: as_code(repr(getattr(options, f.name))) for f in fields(options)}


def as_code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def links(page: Path) -> list[str]:
    return re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text())


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    return target.is_file() and (not heading or heading in headings(target))


def headings(page: Path) -> list[str]:
    """The headings of a page as a link names them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in found]


@pytest.mark.parametrize(
    ("settings", "page"),
    [
        (Settings, "README.md"),
        (FlowerSettings, "docs/flower.md"),
        (ApiSettings, "docs/http.md"),
        (FunctionSettings, "docs/lambda.md"),
    ],
    ids=["readme", "flower", "api", "lambda"],
)
def test_the_settings_table_is_the_settings(settings: type[BaseSettings], page: str) -> None:
    rows = re.findall(
        r"^\| `([A-Z0-9_]+)` \| (.*?) \| (.*) \|$", (ROOT / page).read_text(), re.MULTILINE
    )

    prefix = settings.model_config.get("env_prefix", "")
    declared = []
    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None or default == {} else f"`{default}`"
        declared.append((prefix + name.upper(), shown, field.description))
    assert rows == declared


def test_the_page_of_options_has_each_option_with_its_default() -> None:
    options, control, metrics = (
        dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \| .* \|$", table, re.MULTILINE))
        for table in OPTIONS.split("\n## ")[1:4]
    )

    told = Options("", {})
    assert options == {
        **{OPTION.get(k, k): v for k, v in shown(told).items() if k not in GROUPS},
        **shown(told.policy),
        **shown(told.canvas),
        **{OPTION[k]: v for k, v in shown(Role("")).items()},
        "sts_role_arn": "`None`",
        "region": "",
        "predefined_queues": "",
        "control": "`{}`",
        "metrics": "`{}`",
    }
    assert control == {OPTION.get(k, k): v for k, v in shown(told.control).items()}
    assert metrics == shown(told.metrics)


def test_the_page_of_lambda_has_each_metric_with_its_unit() -> None:
    page = (ROOT / "docs" / "lambda.md").read_text().partition("\n## Metrics\n")[2]
    assert dict(re.findall(r"^\| `(\w+)` \| (\w+) \| .* \|$", page, re.MULTILINE)) == dict(UNITS)


def test_each_page_of_docs_is_linked_from_the_readme() -> None:
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#]+)", README))


def test_each_link_of_a_page_leads_to_a_file_and_a_heading_of_it() -> None:
    assert [link for page in PAGES for link in links(page) if not leads_somewhere(page, link)] == []


def test_each_picture_is_shown_and_small() -> None:
    text = "".join(page.read_text() for page in PAGES)
    shown = re.findall(r"!\[[^\]]+\]\((?:docs/)?images/([^)]+)\)", text)
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert set(shown) == {picture.name for picture in pictures}
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []
