"""docs/metrics.md lists each figure, as it is in both ways out."""

import re
from pathlib import Path

from sqs_broker.observers.instruments import ALL, OF_QUEUES, prometheus
from sqs_broker.worker.metrics import MEASURED

PAGE = (Path(__file__).parents[2] / "docs/metrics.md").read_text()


def rows(section: str) -> list[tuple[str, ...]]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(
        r"^\| `([\w.]+)` \| `(\w+)` \((\w+)\) \| (.*?) \| (.*) \|$", text, re.MULTILINE
    )


def test_the_page_has_each_figure_with_its_names_its_labels_and_what_it_is() -> None:
    found = [
        row
        for name in ("Messages and calls", "The state of a worker", "Queues")
        for row in rows(name)
    ]
    assert sorted(found) == sorted(
        (
            each.name,
            each.prometheus,
            each.kind.value,
            ", ".join(f"`{prometheus(label)}`" for label in each.labels),
            each.what,
        )
        for each in ALL
    )


def test_each_is_in_the_section_of_where_it_is_measured() -> None:
    assert [name for name, *_ in rows("The state of a worker")] == [each.name for each in MEASURED]
    assert [name for name, *_ in rows("Queues")] == [each.name for each in OF_QUEUES]
