"""What a run measures: all of it, or what fits in three minutes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bench.api import PROGRAMS
from bench.candidates import (
    BARE,
    BARE_BULK,
    DRAMATIQ,
    EVERYONE,
    OURS,
    OURS_8,
    OURS_BY_DOOR,
    OURS_THREADS,
    OURS_WITH_METRICS,
    OURS_WITH_TRACES,
    OURS_WITHOUT_EVENTS,
    OURS_WITHOUT_LINES,
    SQS_CONSUMER,
    STOCK_BEST,
    STOCK_DEFAULTS,
    STOCK_THREADS,
    Candidate,
)
from bench.throughput import Cell

#: Events a second.
EVENTS = 500.0
#: Shares of a consumer's throughput at which latency is measured.
LOADS = (0.1, 0.8)
#: Requests a second of all clients together, which each way of the API can carry.
PACED = 200.0
#: Messages a second at which it is measured for all alike, within what each can carry.
SAME_RATES = (50.0, 130.0)


@dataclass(frozen=True)
class Plan:
    """Seconds where nothing else is said."""

    limit: float
    """Nothing is begun that would not end before it."""
    rounds: int
    window: float
    cells: Sequence[Cell]
    backlog: int
    """Messages before each cell."""
    depths: Sequence[int] = ()
    """Backlogs that this project alone is measured at."""
    queues: Sequence[int] = ()
    """Numbers of queues, all but one of them empty, that this project alone is measured at."""
    fleets: Sequence[int] = ()
    """Numbers of workers on one queue, of this project alone."""
    loads: Sequence[tuple[float, float]] = ()
    """Messages a second, and for how many seconds they are sent to one worker of this project."""
    latency: Sequence[Candidate] = ()
    floor: Sequence[Candidate] = ()
    """Whose latency is what the calls alone take: measured at the rates that are the same."""
    latency_seconds: float = 10
    idle: Sequence[Candidate] = ()
    idle_seconds: float = 62
    full: Sequence[Candidate] = ()
    full_seconds: float = 30
    recovery: Sequence[Candidate] = ()
    published: dict[str, int] = field(default_factory=dict)
    """Messages by the way they are sent."""
    first_uses: int = 0
    """Processes that import the tasks and send."""
    events: Sequence[tuple[Candidate, float]] = ()
    """Who, and for how long."""
    requests: Sequence[tuple[str, float | None]] = ()
    """Ways of `bench/api.py`, and requests a second; None: as many as there can be."""
    request_loads: Sequence[float] = ()
    """Shares of what one process of the API carries, at which it is measured."""
    request_processes: Sequence[int] = ()
    """Numbers of processes of the API that share as many requests as there can be."""
    request_clients: Sequence[int] = ()
    """Smaller numbers of clients that each ask one process of the API again at once."""
    request_seconds: float = 5
    clients: int = 200
    batch: int = 10_000
    """Registrations of one request; 0: that and a lone request are not measured."""


def _cells(task: str, delay_ms: float, candidates: Iterable[Candidate]) -> list[Cell]:
    return [Cell(candidate, task, delay_ms) for candidate in candidates]


#: What an option costs, beside the row without it.
VARIANTS = (OURS_WITHOUT_EVENTS, OURS_WITHOUT_LINES, OURS_WITH_METRICS, OURS_WITH_TRACES)

FULL = Plan(
    limit=28 * 60,
    rounds=3,
    window=3,
    backlog=12_000,
    cells=[
        *_cells("register", 10, EVERYONE),
        *_cells("register", 0, EVERYONE),
        *_cells("register", 10, VARIANTS),
        *_cells("register", 0, VARIANTS),
        *_cells("register", 10, OURS_BY_DOOR),
        Cell(OURS, "register", 10, workers=2),
        Cell(STOCK_BEST, "register", 10, workers=2),
        *_cells(
            "noop", 10, [OURS, OURS_8, STOCK_BEST, STOCK_THREADS, SQS_CONSUMER, DRAMATIQ, BARE]
        ),
        *_cells("noop", 0, [OURS, OURS_8, STOCK_BEST, STOCK_THREADS, SQS_CONSUMER, DRAMATIQ, BARE]),
        *_cells("wait", 10, [OURS_8, OURS_THREADS, STOCK_BEST, STOCK_THREADS, DRAMATIQ]),
        *_cells("wait", 0, [OURS_8, STOCK_BEST]),
    ],
    depths=(1_000, 10_000, 100_000),
    queues=(1, 10, 50),
    fleets=(1, 2, 4),
    # At 0, long enough for two long polls.
    loads=((0, 41), (10, 10), (50, 10), (100, 8), (200, 8), (400, 8), (600, 8)),
    latency=(OURS, STOCK_BEST, SQS_CONSUMER),
    floor=(BARE,),
    idle=(OURS, OURS_THREADS, STOCK_BEST, STOCK_DEFAULTS, SQS_CONSUMER),
    full=(OURS, OURS_8, STOCK_BEST),
    recovery=(OURS,),
    published={"many": 5_000, "many8": 5_000, "each": 300},
    first_uses=5,
    events=((OURS, 60), (OURS_WITHOUT_EVENTS, 20)),
    requests=(*((way, None) for way in PROGRAMS), *((way, PACED) for way in PROGRAMS)),
    request_loads=(0.5, 0.8),
    request_processes=(2,),
    # What each of two, three and four processes gets of 200 clients.
    request_clients=(100, 67, 50),
)

QUICK = Plan(
    limit=170,
    rounds=1,
    window=1.5,
    backlog=6_000,
    cells=[
        *_cells(
            "register",
            10,
            [OURS, OURS_THREADS, STOCK_BEST, SQS_CONSUMER, DRAMATIQ, BARE, BARE_BULK],
        ),
        *_cells("register", 10, OURS_BY_DOOR),
        *_cells("register", 0, [OURS, STOCK_BEST, SQS_CONSUMER, BARE]),
        *_cells("noop", 10, [OURS, STOCK_BEST]),
        *_cells("wait", 10, [OURS_8, STOCK_BEST]),
    ],
    latency=(OURS,),
    latency_seconds=3,
    idle=(OURS, STOCK_BEST),
    idle_seconds=21,
    published={"many": 3_000, "many8": 3_000},
    requests=[(way, None) for way in PROGRAMS],
    request_loads=(0.8,),
    request_seconds=2,
    batch=1_000,
)
