"""Does what a plan says, within its time, and goes on where one measurement fails."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bench import api, events, latency, limits, loads, publishing, quiet, recovery, throughput
from bench.candidates import OURS, Candidate
from bench.errors import BenchError
from bench.lab import Lab
from bench.plan import EVENTS, LOADS, SAME_RATES, Plan
from bench.results import Results, Round, Throughput
from bench.throughput import Cell, Effort
from devstack.errors import StackError

#: Seconds around a measurement: servers and workers start, the queue is filled.
AROUND = 6.0
#: Messages a second that are put on a queue; a guess for the time a deep one takes.
FILL = 5_000
#: Messages beyond what a window is expected to take.
SPARE = 1_000
#: Seconds that a recovery takes: a visibility timeout, and work on both sides of it.
RECOVERY = 80.0

#: Added to each call where the API is measured.
DELAY_MS = 10.0

Say = Callable[[str], None]


@dataclass
class Run:
    """One run, and what it has measured so far."""

    lab: Lab
    plan: Plan
    results: Results
    say: Say
    only: str = ""
    """Measurements whose name has this in it; all of them where it is empty."""
    started: float = field(default_factory=time.monotonic)
    took: dict[str, float] = field(default_factory=dict)
    """Seconds of each measurement, by its name: what it takes in the next round."""
    watch: Callable[[Lab, Cell, Effort], Round] = throughput.measure
    """Measures a worker on a full queue."""

    def measure(self) -> None:
        """All that there is time for: one round of everything, then the other rounds."""
        self._missing = self._skip_missing()
        if not self.only:
            self.results.limits = limits.measure(self.lab)
        self._round(1)
        self._api()
        self._publishing()
        self._loads()
        self._latency()
        self._quiet("idle", self.plan.idle, self.plan.idle_seconds)
        self._quiet("full", self.plan.full, self.plan.full_seconds)
        self._events()
        self._recovery()
        for number in range(2, self.plan.rounds + 1):
            self._round(number)
        self.results.seconds = time.monotonic() - self.started

    def _skip_missing(self) -> frozenset[str]:
        everyone = {cell.candidate for cell in self.plan.cells}
        lacking = {each.name: each.lacks(self.lab.why_no_node) for each in everyone}
        found = {name: why for name, why in sorted(lacking.items()) if why}
        self.results.skipped += [f"{name}: {why}" for name, why in found.items()]
        return frozenset(found)

    def _round(self, number: int) -> None:
        # Turned round each time, so that what changes in the machine meets everybody.
        order = -1 if number % 2 == 0 else 1
        for cell in list(self.plan.cells)[::order]:
            self._cell(number, cell)
        for depth in list(self.plan.depths)[::order]:
            self._depth(number, depth)
        for count in list(self.plan.queues)[::order]:
            self._queues(number, count)
        for workers in list(self.plan.fleets)[::order]:
            self._fleet(number, workers)

    def _most(self) -> int:
        """The messages of a backlog that the server is not slow at."""
        deepest = self.lab.server.deepest
        return min(self.plan.backlog, deepest // 2) if deepest else self.plan.backlog

    def _backlog(self, row: Throughput) -> int:
        """Enough for the window, at twice the rate that was seen."""
        if not row.rounds:
            return row.backlog
        return min(row.backlog, int(2 * row.rate * (self.plan.window + 1)) + SPARE)

    def _cell(self, number: int, cell: Cell) -> None:
        if cell.candidate.name in self._missing:
            return
        most = self._most()
        workers = f", {cell.workers} workers" if cell.workers > 1 else ""
        name = f"{cell.candidate.name}, {cell.task}, +{cell.delay_ms:g} ms{workers}"

        def measure() -> str:
            row = _row(self.results.throughput, cell, most)
            effort = Effort(self._backlog(row), self.plan.window)
            measured = self.watch(self.lab, cell, effort)
            return _add(self.results.throughput, row, measured)

        self._try(f"round {number}", name, self.plan.window, measure)

    def _depth(self, number: int, depth: int) -> None:
        cell, effort = Cell(OURS, "register", 10), Effort(depth, 2 * self.plan.window, warm_up=0)
        name = f"{OURS.name}, a backlog of {depth}"
        if not self.lab.server.holds(depth):
            if number == 1:
                self.results.skipped.append(f"{name}: {self.lab.server.name} is slow at it")
            return

        def measure() -> str:
            row = _row(self.results.depths, cell, depth)
            return _add(self.results.depths, row, self.watch(self.lab, cell, effort))

        self._try(f"round {number}", name, effort.window + depth / FILL, measure)

    def _queues(self, number: int, count: int) -> None:
        cell = Cell(OURS, "register", 10, queues=count)

        def measure() -> str:
            row = _row(self.results.queues, cell, self._most())
            effort = Effort(self._backlog(row), self.plan.window)
            return _add(self.results.queues, row, self.watch(self.lab, cell, effort))

        name = f"{OURS.name}, one busy queue of {count}"
        self._try(f"round {number}", name, self.plan.window, measure)

    def _fleet(self, number: int, workers: int) -> None:
        cell = Cell(OURS, "register", 10, workers=workers)

        def measure() -> str:
            row = _row(self.results.fleets, cell, self._most())
            effort = Effort(self._backlog(row), self.plan.window)
            return _add(self.results.fleets, row, self.watch(self.lab, cell, effort))

        name = f"{OURS.name}, a fleet of {workers}"
        self._try(f"round {number}", name, self.plan.window, measure)

    def _loads(self) -> None:
        for rate, seconds in self.plan.loads:

            def measure(rate: float = rate, seconds: float = seconds) -> str:
                measured, taken = loads.measure(self.lab, OURS, DELAY_MS, rate, seconds)
                self.results.loads.append(measured)
                self.results.storage = taken or self.results.storage
                return f"{measured.rate:.0f} messages/s, {measured.calls_a_second:.1f} calls/s"

            name = f"{OURS.name}, in a fleet, at {rate:g}/s"
            self._try("loads", name, seconds + loads.REST, measure)

    def _latency(self) -> None:
        for candidate in (*self.plan.latency, *self.plan.floor):
            carried = self.results.find(candidate.name, "register", 10)
            if carried is None:
                continue
            for rate in SAME_RATES:
                if rate < carried.rate:
                    self._latency_at(candidate, rate / carried.rate, rate)
            for load in () if candidate in self.plan.floor else LOADS:
                self._latency_at(candidate, load, carried.rate * load)

    def _latency_at(self, candidate: Candidate, load: float, rate: float) -> None:
        seconds = self.plan.latency_seconds

        def measure() -> str:
            measured = latency.measure(self.lab, candidate, 10, load, rate, seconds)
            self.results.latency.append(measured)
            return f"p50 {measured.p50 or 0:.1f} ms, p99 {measured.p99 or 0:.1f} ms"

        name = f"{candidate.name}, latency at {rate:.0f}/s, {load:.0%} load"
        self._try("latency", name, seconds + latency.REST, measure)

    def _quiet(self, state: str, candidates: Sequence[Candidate], seconds: float) -> None:
        present = [each for each in candidates if each.name not in self._missing]

        def measure() -> str:
            measured = quiet.measure(self.lab, state, present, seconds)
            self.results.quiet += measured
            return "; ".join(
                f"{each.config}: {each.cores or 0:.3f} cores, {each.calls_an_hour:.0f} calls/h"
                for each in measured
            )

        if present:
            self._try(state, f"{state} workers", seconds + quiet.FIRST + len(present), measure)

    def _recovery(self) -> None:
        for candidate in self.plan.recovery:

            def measure(candidate: Candidate = candidate) -> str:
                measured = recovery.measure(self.lab, candidate)
                self.results.recovery.append(measured)
                return f"{measured.left} messages stored within {measured.seconds:.1f} s"

            self._try("recovery", f"{candidate.name}, kill -9", RECOVERY, measure)

    def _events(self) -> None:
        for candidate, seconds in self.plan.events:

            def measure(candidate: Candidate = candidate, seconds: float = seconds) -> str:
                measured = events.measure(self.lab, candidate, EVENTS, seconds)
                self.results.events.append(measured)
                return f"{measured.settled} of {measured.sent} tasks, {measured.heard} events heard"

            self._try("events", f"{candidate.name}, flow of events", seconds + AROUND, measure)

    def _api(self) -> None:
        for way, rate in self.plan.requests:
            self._crowd(way, rate)
        for processes in self.plan.request_processes:
            self._crowd(api.API, processes=processes)
        for clients in self.plan.request_clients:
            self._crowd(api.API, clients=clients)
        if full := self.results.full(api.API):
            for load in self.plan.request_loads:
                self._crowd(api.API, round(load * full.per_second))
        if self.plan.batch:
            self._try("API", "API, a lone request", AROUND, self._lone)
            self._try("API", f"API, a batch of {self.plan.batch}", 2 * AROUND, self._batch)

    def _crowd(
        self,
        way: str,
        rate: float | None = None,
        processes: int = 1,
        clients: int | None = None,
    ) -> None:
        count, seconds = clients or self.plan.clients, self.plan.request_seconds

        def measure() -> str:
            measured = api.crowd(self.lab, way, count, DELAY_MS, seconds, rate, processes)
            self.results.requests.append(measured)
            return (
                f"{measured.per_second:.0f} requests/s, p99 {measured.p99:.0f} ms, "
                f"{measured.calls_a_request:.2f} calls and {measured.cpu_ms or 0:.2f} ms CPU "
                "a request"
            )

        more = f", {processes} processes" if processes > 1 else ""
        pace = f" at {rate:g}/s" if rate else ""
        name = f"API, {way}{more}, {count} clients{pace}"
        self._try("API", name, seconds + AROUND, measure)

    def _lone(self) -> str:
        self.results.lone = measured = api.lone(self.lab, DELAY_MS)
        return f"{measured.request_ms:.1f} ms, a call to SQS {measured.call_ms:.1f} ms"

    def _batch(self) -> str:
        self.results.batch = measured = api.batch(self.lab, self.plan.batch, DELAY_MS)
        return f"{measured.calls} calls, up to {measured.most_open} at a time"

    def _publishing(self) -> None:
        for way, messages in self.plan.published.items():

            def measure(way: str = way, messages: int = messages) -> str:
                measured = publishing.measure(self.lab, way, messages, 10)
                self.results.publishing.append(measured)
                rate = measured.messages / measured.seconds
                return f"{measured.calls_a_message:.2f} calls a message, {rate:.0f} messages/s"

            self._try("publishing", publishing.WAYS[way], AROUND, measure)
        if self.plan.first_uses:
            self._try("publishing", "a producer starts", AROUND, self._first_use)

    def _first_use(self) -> str:
        self.results.first_use = measured = publishing.first(self.lab, self.plan.first_uses)
        return (
            f"import {measured.imported:.2f} s, first .delay {measured.first:.2f} s, "
            f"then {measured.later_us:.0f} µs of CPU each"
        )

    def _try(self, step: str, name: str, seconds: float, measure: Callable[[], str]) -> None:
        if self.only and self.only not in name:
            return
        begun = time.monotonic()
        if begun - self.started + self.took.get(name, seconds + AROUND) > self.plan.limit:
            self.results.skipped.append(f"{step}, {name}: no time was left")
            return
        try:
            told = measure()
        except (BenchError, StackError, OSError) as exc:
            self.results.failed.append(f"{step}, {name}: {exc}")
            told = f"FAILED: {exc}"
        self.took[name] = time.monotonic() - begun
        self.say(f"{step}: {name}: {told}")


def _row(rows: Sequence[Throughput], cell: Cell, backlog: int) -> Throughput:
    """The row of the rounds before, or a new one."""
    row = Throughput(
        cell.candidate.name, cell.task, cell.delay_ms, cell.workers, backlog, queues=cell.queues
    )
    return next((known for known in rows if replace(known, rounds=[]) == row), row)


def _add(rows: list[Throughput], row: Throughput, measured: Round) -> str:
    """Keep a round; a row is kept with its first one."""
    if not row.rounds:
        rows.append(row)
    row.rounds.append(measured)
    return f"{measured.rate:.0f} messages/s"
