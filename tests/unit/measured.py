"""Results of a benchmark that nobody ran."""

from typing import Any

from bench.results import Results, Round, Throughput


def round_of(rate: float, **changes: Any) -> Round:
    """A window of two seconds."""
    fields: dict[str, Any] = {
        "seconds": 2.0,
        "deleted": int(rate * 2),
        "calls": {"ReceiveMessage": 20, "DeleteMessageBatch": 22},
        "commands": {"findAndModify": int(rate * 2)},
        "worker_cpu": 1.0,
        "proxy_cpu": 0.5,
        "server_cpu": 0.5,
        "memory": 100 * 1024 * 1024,
    }
    return Round(**fields | changes)


def row_of(
    config: str, *rates: float, task: str = "register", added_ms: float = 10, **changes: Any
) -> Throughput:
    rounds = [round_of(rate, **changes) for rate in rates]
    return Throughput(config, task, added_ms, 1, 6000, rounds)


def run_of(*rows: Throughput) -> Results:
    return Results(
        at="2026-01-02",
        machine="a machine",
        versions={"Python": "3"},
        server="a server",
        rounds=3,
        window=2,
        command="make bench",
        throughput=list(rows),
    )
