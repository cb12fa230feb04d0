"""Draws the spans of one trace as an SVG.

    python -m tests.probe.trace_picture SPANS_FILE > docs/images/trace.svg

SPANS_FILE is what tests/acceptance/test_tracing.py writes.
"""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from tests.probe import spans

ROW, LEFT, WIDTH, MARGIN = 34, 380, 560, 16

#: By the place of its process among those of the trace.
COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c")


def picture(found: list[dict[str, Any]]) -> str:
    """One row for each span, in the order of the tree: its name, and a bar from start to end."""
    begin = min(span["start"] for span in found)
    scale = WIDTH / (max(span["end"] for span in found) - begin)
    pids = list(dict.fromkeys(span["pid"] for span in found))
    height = ROW * len(found) + 3 * MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 7 * MARGIN}" '
        f'height="{height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for row, (depth, span) in enumerate(rows(found)):
        y = MARGIN + row * ROW
        x, width = (span["start"] - begin) * scale, (span["end"] - span["start"]) * scale
        colour = COLOURS[pids.index(span["pid"]) % len(COLOURS)]
        took = f"{(span['end'] - span['start']) * 1000:.1f} ms"
        lines += [
            f'<text x="{MARGIN + 18 * depth}" y="{y + 15}">{escape(span["name"])}</text>',
            f'<rect x="{LEFT + x:.1f}" y="{y}" width="{max(width, 2):.1f}" height="20" rx="3" '
            f'fill="{colour}"/>',
            f'<text x="{LEFT + x + max(width, 2) + 6:.1f}" y="{y + 15}" fill="#666">{took}</text>',
        ]
    return "\n".join([*lines, "</svg>"])


def rows(
    found: list[dict[str, Any]], above: str | None = None, depth: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each span with its depth, under its parent."""
    ids = {span["id"] for span in found}
    for span in found:
        parent = span["parent"] if span["parent"] in ids else None
        if parent == above:
            yield depth, span
            yield from rows(found, span["id"], depth + 1)


if __name__ == "__main__":
    sys.stdout.write(picture(spans.read(Path(sys.argv[1]))) + "\n")
