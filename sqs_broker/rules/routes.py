"""Where dead letters go, and whether they come back: pure functions.

A bad message whose dead letters come back to a worker goes round for ever, many times a second.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol
from urllib.parse import unquote

#: The region in the name of a host of Amazon's: of SQS's endpoints (also FIPS, dual-stack and those
#: of a private network), and of the older ones. https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
REGION = r"([a-z]+(?:-[a-z]+)+-\d+)"
HOST = re.compile(rf"(?:^|\.)sqs(?:-fips)?\.{REGION}\.|^{REGION}\.queue\.amazonaws\.com")

#: The oldest one names none.
FIRST_HOST, FIRST_REGION = "queue.amazonaws.com", "us-east-1"

#: What local servers have where Amazon has an account: one queue may be reached by each.
NO_ACCOUNT = ("", "queue", "000000000000")


class By(StrEnum):
    """What sends the dead letters of a queue to another."""

    SETTING = "dead_letter_url"
    POLICY = "its redrive policy"


@dataclass(frozen=True)
class Route:
    """The dead letters of one queue go to another."""

    source: str
    target: str
    by: By
    configured: str | None = None
    """What the options call the source, where they name the target."""

    def __str__(self) -> str:
        known_as = self.configured not in (None, self.source)
        source = f"{self.configured} ({self.source})" if known_as else self.source
        target = f"{self.source} itself" if self.source == self.target else self.target
        return f"those of {source} to {target} ({self.by})"


class Address(Protocol):
    """Where a queue and its dead letters live."""

    @property
    def url(self) -> str: ...

    @property
    def dead_letter_url(self) -> str | None: ...


class Addresses(Protocol):
    """The queues that are configured, as sqs_broker/options.py has them."""

    @property
    def region(self) -> str: ...

    @property
    def endpoint_url(self) -> str | None: ...

    @property
    def queues(self) -> Mapping[str, Address]: ...


@dataclass(frozen=True)
class Identity:
    """What makes two addresses those of one queue."""

    region: str
    account: str
    name: str


def circle(addresses: Addresses, policies: Mapping[str, str] | None = None) -> tuple[Route, ...]:
    """Routes of dead letters that lead back to where the first began; none where all of them end.

    `policies`: the attribute RedrivePolicy of queues, by their URLs, as far as it is known.
    """
    routes = _routes(addresses, policies or {})
    for queue in routes:
        if found := _way_back(queue, routes):
            return found
    return ()


def told(routes: tuple[Route, ...]) -> str:
    """A circle in words."""
    ways = ", ".join(str(route) for route in routes)
    return f"dead letters come back: {ways}; so a bad message would go round for ever"


def identity(url: str, addresses: Addresses) -> Identity:
    """Of a queue's URL. Its host says no more than a region, since all calls go to one endpoint."""
    # By hand: a URL that is none is no error here.
    authority, _, rest = url.partition("://")[2].partition("/")
    host = authority.rpartition("@")[2].partition(":")[0].rstrip(".").lower()
    path = rest.partition("?")[0].partition("#")[0]
    *account, name = [unquote(part) for part in path.split("/") if part] or [host]
    digits = [part for part in account if part.isdigit()]
    return Identity(_region(host, addresses), "/".join(digits[-1:] or account), name)


def identity_of_arn(arn: str, addresses: Addresses) -> Identity:
    """Of a queue's ARN: `arn:aws:sqs:region:account:name`."""
    *_, region, account, name = f"::{arn}".split(":")
    return Identity(addresses.region if addresses.endpoint_url else region, account, name)


def _region(host: str, addresses: Addresses) -> str:
    if addresses.endpoint_url:
        return addresses.region
    if host == FIRST_HOST:
        return FIRST_REGION
    found = HOST.search(host)
    return (found[1] or found[2]) if found else addresses.region


def _routes(
    addresses: Addresses, policies: Mapping[str, str]
) -> dict[Identity, list[tuple[Identity, Route]]]:
    """By source, each with its target."""
    edges = [*_by_setting(addresses), *_by_policy(addresses, policies)]
    known = {queue for source, target, _ in edges for queue in (source, target)}
    without_account = {queue.name for queue in known if queue.account in NO_ACCOUNT}

    def one(queue: Identity) -> Identity:
        return replace(queue, account="") if queue.name in without_account else queue

    routes: dict[Identity, list[tuple[Identity, Route]]] = {}
    for source, target, route in edges:
        routes.setdefault(one(source), []).append((one(target), route))
    return routes


def _by_setting(addresses: Addresses) -> Iterator[tuple[Identity, Identity, Route]]:
    for name, address in addresses.queues.items():
        if address.dead_letter_url is not None:
            source = identity(address.url, addresses)
            target = identity(address.dead_letter_url, addresses)
            yield source, target, Route(source.name, target.name, By.SETTING, name)


def _by_policy(
    addresses: Addresses, policies: Mapping[str, str]
) -> Iterator[tuple[Identity, Identity, Route]]:
    for url, policy in policies.items():
        if arn := json.loads(policy or "{}").get("deadLetterTargetArn"):
            source, target = identity(url, addresses), identity_of_arn(str(arn), addresses)
            yield source, target, Route(source.name, target.name, By.POLICY)


def _way_back(
    start: Identity, routes: Mapping[Identity, list[tuple[Identity, Route]]]
) -> tuple[Route, ...]:
    """The shortest one from a queue to itself."""
    ways: list[tuple[Identity, tuple[Route, ...]]] = [(start, ())]
    seen = set()
    for queue, way in ways:
        for target, route in routes.get(queue, ()):
            if target == start:
                return (*way, route)
            if target not in seen:
                seen.add(target)
                ways.append((target, (*way, route)))
    return ()
