"""API keys: who asks, and what they may do. Only hashes of keys are kept.

A key is random and long, so its plain SHA-256 cannot be guessed from. Several keys may have one
name: then one replaces the other, and ids stay the same, because they depend on the name.
"""

import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from app.errors import SettingsError

#: The name of a client, in logs and ids.
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HASH = re.compile(r"[0-9a-f]{64}")

HOW_TO_MAKE = "`python -m app.api key NAME` makes one."


class Scope(StrEnum):
    """What a key may do."""

    REGISTER = "register"
    """Send, and ask what became of what this key has sent; without personal data."""
    READ = "read"
    """Read users, and what became of any registration."""
    OPERATE = "operate"
    """See the queues."""


@dataclass(frozen=True)
class Client:
    """Who asks."""

    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the key has this scope."""
        return scope in self.scopes


#: Who asks if there are no keys: anybody on this machine.
ANYBODY = Client("", frozenset(Scope))


@dataclass(frozen=True)
class Key:
    """A key, by its hash."""

    client: Client
    hash: bytes


class Keys:
    """The keys that are accepted. Without any, everybody is accepted."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = keys

    def __bool__(self) -> bool:
        return bool(self._keys)

    def client(self, given: bytes | None) -> Client | None:
        """The client of a key; None if the key is not valid. Takes the same time for each key."""
        if not self._keys:
            return ANYBODY
        hash_ = sha256(given or b"").hexdigest().encode()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.hash, hash_):
                found = key.client
        return found if given else None


def read_keys(text: str) -> Keys:
    """The keys in API_KEYS. Raises SettingsError, without a value of it."""
    entries = [entry.strip() for entry in text.split(",")]
    return Keys([_read(number, entry) for number, entry in enumerate(entries, 1) if entry])


def _read(number: int, entry: str) -> Key:
    parts = entry.split(":")
    name, hash_ = parts[0], parts[-1].lower()
    scopes = parts[1].split("+") if len(parts) == 3 else [Scope.REGISTER]
    if len(parts) not in (2, 3) or not NAME.fullmatch(name) or not HASH.fullmatch(hash_):
        raise SettingsError(
            f"API_KEYS: entry {number} should be name:sha256 or name:scope+scope:sha256. "
            f"{HOW_TO_MAKE}"
        )
    if unknown := [scope for scope in scopes if scope not in set(Scope)]:
        raise SettingsError(
            f"API_KEYS: entry {number} has {len(unknown)} unknown scopes. The scopes are "
            f"{', '.join(Scope)}."
        )
    return Key(Client(name, frozenset(map(Scope, scopes))), hash_.encode())


def new_key(name: str, scopes: Sequence[Scope]) -> tuple[str, str]:
    """A new key, and its entry for API_KEYS."""
    key = secrets.token_urlsafe(32)
    return key, f"{name}:{'+'.join(scopes)}:{sha256(key.encode()).hexdigest()}"


class Rates:
    """How many items each client has sent to this process: a bucket for each name, which holds the
    items of one second.

    A request is allowed if its client's bucket is not empty. It may take more than there is, as a
    batch does: then the next request waits until the bucket is full to above zero again.
    """

    def __init__(
        self, per_second: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = max(per_second or 0, 1)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, name: str) -> int:
        """Seconds until a request of this client is allowed; 0 if it is allowed now."""
        if self._per_second is None:
            return 0
        left = self._left(name)
        return 0 if left >= 1 else max(1, math.ceil((1 - left) / self._per_second))

    def take(self, name: str, items: int) -> None:
        """Count items of this client."""
        if self._per_second is not None:
            self._buckets[name] = (self._left(name) - items, self._clock())

    def _left(self, name: str) -> float:
        left, at = self._buckets.get(name, (self._burst, self._clock()))
        return min(self._burst, left + (self._clock() - at) * (self._per_second or 0))
