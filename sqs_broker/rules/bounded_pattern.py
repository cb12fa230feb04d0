"""Regular expressions that cannot take long, whatever text they meet.

Python's `re` tries one way after the other. A pattern with nested repetitions can have more ways
than anyone can wait for. So the number of ways is estimated before the pattern is used: each
repetition and each alternative multiplies it.
"""

import re
from math import inf
from re import _parser as parser  # type: ignore[attr-defined]  # typeshed does not have it
from typing import Any

#: Most characters of a text that is searched.
LONGEST_TEXT = 1_500

#: Most characters of a pattern.
LONGEST_PATTERN = 200

#: Most ways in which a pattern may be tried, at all places of the longest text together. They take
#: a fraction of a second.
MOST_WAYS = 20_000_000

#: What stands for one character, or for a place, and has one way.
SINGLE = frozenset({"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "CATEGORY", "RANGE"})


class Unbounded(ValueError):
    """A pattern that is wrong, or that could take too long. The text says what to change."""


def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern; case is ignored. Raises Unbounded."""
    if len(pattern) > LONGEST_PATTERN:
        raise Unbounded(f"it has more than {LONGEST_PATTERN} characters")
    try:
        ways = LONGEST_TEXT * _ways(parser.parse(pattern, re.IGNORECASE))
        found = re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as exc:
        raise Unbounded(f"it is no regular expression ({type(exc).__name__})") from exc
    if ways > MOST_WAYS:
        raise Unbounded(
            "it could take too long. Use one `*` or `+` at most, and limits such as `.{0,40}`; "
            "repeat no group that has a choice in it"
        )
    return found


def search(pattern: re.Pattern[str], text: str) -> bool:
    """Whether the pattern is in the first LONGEST_TEXT characters of a text."""
    return pattern.search(text[:LONGEST_TEXT]) is not None


def _ways(parsed: Any) -> float:
    """In how many ways a part of a pattern can be tried at one place."""
    ways = 1.0
    for operation, argument in parsed:
        ways *= _ways_of(str(operation), argument)
    return ways


def _ways_of(operation: str, argument: Any) -> float:
    if operation in SINGLE:
        return 1
    if operation == "SUBPATTERN":
        return _ways(argument[-1])
    if operation == "BRANCH":
        return sum(_ways(each) for each in argument[1])
    if operation in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, repeated = argument
        least, most = int(least), min(int(most), LONGEST_TEXT)
        inner = _ways(repeated)
        if inner > 1:
            return inf if most > 20 else (most - least + 1) * inner**most
        return float(most - least + 1)
    raise Unbounded("it looks around or back, which is not supported here")
