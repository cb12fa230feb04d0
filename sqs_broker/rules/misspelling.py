"""Finds the name that a misspelt one was meant to be, in any style: `message_group_id`."""

from difflib import get_close_matches
from functools import lru_cache

#: How near two names must be, from 0 to 1.
NEAR = 0.8


@lru_cache
def nearest(name: str, known: frozenset[str]) -> str | None:
    """The known name that is nearest to this one; None if none is near. Case and `_` do not
    count."""
    plain = {_plain(each): each for each in sorted(known)}
    found = get_close_matches(_plain(name), plain, n=1, cutoff=NEAR)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
