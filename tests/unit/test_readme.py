"""What README.md and docs/ say of the code is what the code says."""

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from app.settings import FlowerSettings, Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "page"),
    [(Settings, "README.md"), (FlowerSettings, "docs/flower.md")],
    ids=["readme", "flower"],
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


def test_the_readme_is_read_in_one_sitting() -> None:
    # What the benchmark writes into it is a table and a chart.
    read = re.sub(r"<!-- bench: .*?<!-- end: ", "", README, flags=re.DOTALL)
    assert len(read.splitlines()) <= 175


def test_each_picture_is_shown_and_small() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    text = "".join(page.read_text() for page in pages)
    shown = re.findall(r"!\[[^\]]+\]\((?:docs/)?images/([^)]+)\)", text)
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert set(shown) == {picture.name for picture in pictures}
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []
