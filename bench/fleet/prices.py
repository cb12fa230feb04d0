"""The prices of what a fleet uses, from prices.json beside this file."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

FILE = Path(__file__).with_name("prices.json")


@dataclass(frozen=True)
class Price:
    """The price of one thing."""

    dollars: float
    of: str
    page: str
    """Its source."""
    page_date: str
    """The date for which the page says that it holds: a year or a month."""


@dataclass(frozen=True)
class Prices:
    """Those of one region, without tax and discounts."""

    region: str
    compared: str
    """The date on which they were compared with their pages."""
    prices: dict[str, Price]

    def dollars(self, name: str) -> float:
        return self.prices[name].dollars


def read() -> Prices:
    """What the file says."""
    return TypeAdapter(Prices).validate_json(FILE.read_bytes())
