"""What README.md says of the code is what the code says."""

import re
from pathlib import Path

from app.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_settings_table_is_the_settings() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)

    declared = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default is None or default == {} else f"`{default}`"
        declared.append((name.upper(), shown, field.description))
    assert rows == declared


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= 150
