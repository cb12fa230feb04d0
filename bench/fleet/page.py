"""The tables of docs/fleet.md."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.fleet import prices
from bench.fleet.days import MESSAGES, Day, days
from bench.fleet.law import Law, law
from bench.fleet.prices import Prices
from bench.fleet.simulation import MINUTE, Simulated, simulate
from bench.results import Results
from bench.table import table
from infra.scaling import Policies, policies
from infra.templates import read

GIGABYTE = 1e9
MILLION = 1e6
#: Messages of one call that sends.
BATCH = 10
#: Of what a worker can do, the share that FlowPerTask takes: docs/aws.md.
RESERVE = 2 / 3
#: Messages a second for which a fleet is computed.
RATES = (100, 1_000, 5_000, 10_000)
#: Days after which the users take the space that is told.
MONTH = 30


@dataclass(frozen=True)
class Task:
    """A worker of infra/service.yaml."""

    vcpus: float
    gigabytes: float


def parts(results: Results) -> dict[str, str]:
    """The tables by the names of their markers."""
    found, priced = law(results), prices.read()
    task = _task()
    ran = list(_simulated(found, task))
    return {
        "law": _law(results, found, task),
        "size": _sizes(found, task),
        "days": _days(ran),
        "dollars": _dollars(ran, found, task, priced),
        "prices": _prices(priced),
    }


def _task() -> Task:
    parameters = read("service")["Parameters"]
    return Task(parameters["Cpu"]["Default"] / 1024, parameters["Memory"]["Default"] / 1024)


def _simulated(found: Law, task: Task) -> Iterator[tuple[str, Simulated]]:
    """Each day with the scaling that docs/aws.md advises, and one with the template's defaults."""
    rules = advised(found.capacity(task.vcpus))
    every = days()
    for day in every:
        yield day.name, simulate(found, rules, task.vcpus, day)
    peaks: Day = every[1]
    name = f"{peaks.name}, and the defaults of the template"
    yield name, simulate(found, policies(), task.vcpus, peaks)


def advised(capacity: float) -> Policies:
    """For a delay of a minute, of workers that end so many messages in a second."""
    return policies(
        BacklogPerTask=round(capacity * MINUTE), FlowPerTask=round(capacity * MINUTE * RESERVE)
    )


def _law(results: Results, found: Law, task: Task) -> str:
    capacity = found.capacity(task.vcpus)
    rows = [
        ["CPU of the worker, ms", f"{found.full.cores * 1000:.2f}"],
        ["CPU of MongoDB, ms", f"{found.full.database * 1000:.2f}"],
        ["calls to SQS, without sending", f"{found.full.calls:.2f}"],
        ["MongoDB commands", f"{found.full.commands:.2f}"],
        ["log lines, bytes", f"{found.log:.0f}"],
        ["a stored user, bytes without compression", f"{found.data:.0f}"],
        ["… in MongoDB's files", f"{found.files:.0f}"],
        ["… in its indexes", f"{found.indexes:.0f}"],
    ]
    told = (
        f"Measured {results.at} on {results.machine}. A worker with {task.vcpus:g} vCPU "
        f"does {capacity:.0f} messages/s, which is ten in {10_000 / capacity:.0f} ms, "
        f"and in a CPU second {1 / found.full.cores:.0f}."
    )
    return f"{told}\n\n{table(('of a message, at a full queue', ''), rows)}"


def _sizes(found: Law, task: Task) -> str:
    capacity = found.capacity(task.vcpus) * RESERVE
    rows = [
        [
            f"{rate:,}",
            f"{math.ceil(rate / capacity)}",
            f"{rate * found.full.cores:.2f}",
            f"{rate * found.full.database:.2f}",
            f"{rate * found.full.calls:,.0f}",
            f"{rate * found.full.commands:,.0f}",
        ]
        for rate in RATES
    ]
    head = (
        "messages/s", f"workers of {task.vcpus:g} vCPU, a third free", "cores of workers",
        "cores of MongoDB", "SQS calls/s", "MongoDB commands/s",
    )  # fmt: skip
    return table(head, rows)


def _days(ran: list[tuple[str, Simulated]]) -> str:
    rows = [
        [
            name,
            f"{day.most_tasks}",
            f"{day.task_seconds / 3600:.0f}",
            f"{day.costs.cores / 3600:.1f}",
            f"{day.most_cores:.1f}",
            f"{day.most_database:.1f}",
            f"{day.most_waiting:,}",
            _age(day.oldest),
            f"{day.behind / MINUTE:.0f}",
        ]
        for name, day in ran
    ]
    head = (
        "day", "most workers", "worker hours", "core hours of workers", "most cores of workers",
        "most cores of MongoDB", "longest queue", "oldest message",
        "minutes with a message of a minute",
    )  # fmt: skip
    return table(head, rows)


def _age(seconds: int) -> str:
    return f"{seconds / MINUTE:.0f} min" if seconds >= 2 * MINUTE else f"{seconds} s"


def _dollars(ran: list[tuple[str, Simulated]], found: Law, task: Task, priced: Prices) -> str:
    rows = [_bill(name, day, found, task, priced) for name, day in ran]
    gigabytes = (found.files + found.indexes) * MESSAGES / GIGABYTE
    told = (
        f"Each day: {MESSAGES / BATCH:,.0f} calls to send, in batches of ten "
        f"({_money(MESSAGES / BATCH / MILLION * priced.dollars('sqs'))}; one by one "
        f"{_money(MESSAGES / MILLION * priced.dollars('sqs'))}). The users of a day take "
        f"{gigabytes:.1f} GB in MongoDB's files and indexes, those of {MONTH} days "
        f"{gigabytes * MONTH:.0f} GB."
    )
    head = (
        "day", "SQS calls", "MongoDB commands", "SQS", "sending", "Fargate", "log lines", "MongoDB",
        "together",
    )  # fmt: skip
    return f"{table(head, rows)}\n\n{told}"


def _bill(name: str, day: Simulated, found: Law, task: Task, priced: Prices) -> list[str]:
    hour = task.vcpus * priced.dollars("vcpu") + task.gigabytes * priced.dollars("memory")
    dollars = [
        day.costs.calls / MILLION * priced.dollars("sqs"),
        day.arrived / BATCH / MILLION * priced.dollars("sqs"),
        day.task_seconds / 3600 * hour,
        found.log * day.done / GIGABYTE * priced.dollars("logs"),
        24 * priced.dollars("mongodb"),
    ]
    return [
        name,
        f"{day.costs.calls:,.0f}",
        f"{day.costs.commands:,.0f}",
        *map(_money, dollars),
        f"**{_money(sum(dollars))}**",
    ]


def _prices(priced: Prices) -> str:
    rows = [
        [each.of, f"{each.dollars:g}", f"[{each.page_date}]({each.page})"]
        for each in priced.prices.values()
    ]
    told = f"{priced.region}, compared with these pages on {priced.compared}:"
    return f"{told}\n\n{table(('price of', '$', 'page, and its date'), rows)}"


def _money(dollars: float) -> str:
    return f"${dollars:,.2f}"
