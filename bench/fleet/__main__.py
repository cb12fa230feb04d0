"""python -m bench.fleet [FILE]: ten million messages in a day, simulated from measured costs.

Prints the tables of docs/fleet.md. With a results file of `make bench`, it keeps what the file says
about fleets, and writes the tables into docs/fleet.md and docs/bench.md.
"""

import sys
from pathlib import Path

from bench import results
from bench.errors import BenchError
from bench.fleet import documents, page
from bench.traffic import ROOT


def main(given: list[str]) -> int:
    try:
        if given:
            for path in documents.write(results.load(Path(given[0]))):
                sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
            return 0
        for text in page.parts(results.load(documents.MEASURED)).values():
            sys.stdout.write(f"{text}\n\n")
    except BenchError as exc:
        sys.stderr.write(f"bench.fleet: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
