"""How many requests come when."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.errors import BenchError

#: Bounds of a run: it shares the machine with everything else.
MOST_REQUESTS = 60_000
MOST_SECONDS = 600

#: Requests a second of the first moment.
START_RATE = 1


@dataclass(frozen=True)
class Shape:
    """Requests a second, and the seconds of each part. `registrations.js` has the same parts."""

    rate: int = 100
    spike_rate: int = 300
    ramp: int = 15
    steady: int = 20
    spike: int = 8
    rest: int = 10
    most_clients: int = 300
    """Most requests at the same time. What does not fit is not sent, and counted."""

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Seconds of each stage, and the rate that it ends with. In between the rate is linear."""
        return [
            (self.ramp, self.rate),
            (self.steady, self.rate),
            (1, self.spike_rate),
            (self.spike, self.spike_rate),
            (1, self.rate),
            (self.rest, self.rate),
        ]

    @property
    def seconds(self) -> int:
        """Of all parts."""
        return sum(seconds for seconds, _ in self.stages)

    def environment(self) -> dict[str, str]:
        """What `registrations.js` reads."""
        return {
            "RATE": str(self.rate),
            "SPIKE_RATE": str(self.spike_rate),
            "RAMP": str(self.ramp),
            "STEADY": str(self.steady),
            "SPIKE": str(self.spike),
            "REST": str(self.rest),
            "MOST_CLIENTS": str(self.most_clients),
        }

    def rate_at(self, second: float) -> float:
        """Requests a second that are to come at this moment."""
        before = float(START_RATE)
        for seconds, target in self.stages:
            if second < seconds:
                return before + (target - before) * second / seconds
            second -= seconds
            before = target
        return 0.0

    def due(self) -> Iterator[float]:
        """The second of each request."""
        at = 0.0
        while rate := self.rate_at(at):
            yield at
            at += 1 / rate

    def check(self) -> None:
        """Raise BenchError if it is too much."""
        if min(self.rate, self.spike_rate, self.most_clients) < 1:
            raise BenchError("RATE, SPIKE_RATE and MOST_CLIENTS are at least 1.")
        if min(self.ramp, self.steady, self.spike, self.rest) < 0:
            raise BenchError("No part of a run can take less than no time.")
        if self.seconds > MOST_SECONDS:
            raise BenchError(f"A run takes at most {MOST_SECONDS} s; this one: {self.seconds} s.")
        requests = sum(1 for _ in self.due())
        if requests > MOST_REQUESTS:
            raise BenchError(f"A run has at most {MOST_REQUESTS} requests; this one: {requests}.")


FULL = Shape()
QUICK = Shape(rate=40, spike_rate=120, ramp=3, steady=4, spike=3, rest=2, most_clients=100)
