"""The report of a run: Markdown for people, JSON for programs."""

import json
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version

from tests.chaos.plan import BURST, DEPLOYS, FAULTS, FULL, LEAD, MOST_RUNS, POOLS, VISIBILITY, Scale
from tests.chaos.run import Result
from tests.chaos.sides import CONCURRENCY, HARD_LIMIT, Ours
from tests.chaos.stage import MEMBERS, MOST_RECEIVES, SLOW
from tests.chaos.traffic import TWICE

#: What holds for every run.
ABOUT = f"""\
## How workers come and go

- Single workers are restarted (SIGTERM to the main process), stopped by a SIGTERM to each process
  as systemd and Heroku do, killed, and paused for longer than their leases.
- In a rolling restart, all workers are restarted one after the other. The messages of the next
  {BURST:g} s come at once when it begins. A restart counts only if messages wait at that time.
- At the start of the run (with an older commit: in the middle), a deploy replaces all workers,
  one after the other, by a release that has one more task (`tests/chaos/releases`). Its messages
  come from {LEAD:g} s before the first of these workers on. Some have to come to workers that do
  not have the task.
- Some messages have a task that fails in each run. Each has to be dead-lettered, after no fewer
  than {MOST_RUNS} failed runs. It may have more: if MongoDB is away or a worker is killed, a failed
  run may not be recorded. No other message may be dead-lettered.

`make chaos ARGS=--deploys` is a run of two minutes in which workers only come and go. There, each
failing message has exactly {MOST_RUNS} failed runs and one dead letter that says so, and no other
message uses up one of its {DEPLOYS.attempts} attempts.

`CHAOS_OLD=path` names a checkout of an older commit (`git worktree add path commit`). By default
there is none. Two of the workers then run its code until the deploy, next to two of this commit.
The messages of the new task come after the deploy, because an older commit may dead-letter at once
what it does not know. The failed runs of failing messages are shown, but not checked, because an
older commit may count deliveries. For the same reason other messages have {FULL.attempts} attempts
then. Stock Celery gets neither the failing nor the new task: it deletes such messages."""


def as_json(results: list[Result], command: str) -> str:
    """All of it."""
    content = {"command": command, "results": [asdict(r) | {"faults": r.faults()} for r in results]}
    return json.dumps(content, indent=2)


def as_markdown(results: list[Result], scale: Scale, command: str) -> str:
    """The tables, this project first."""
    names = " | ".join(result.side for result in results)
    rule = " | ".join("---" for _ in results)
    parts = [
        "# Under fire",
        f"`{command}` wrote this page, with celery {version('celery')}, "
        f"kombu {version('kombu')} and boto3 {version('boto3')}.",
        _setting(results[0], scale),
        ABOUT,
        "## At the end",
        f"| | {names} |\n| --- | {rule} |\n" + "\n".join(_rows(results)),
        *(_verdict(result) for result in results),
        "## What landed",
        "The schedule comes from the seed; a strike lands if there was something to hit. The "
        "run fails if fewer landed than the least.\n\n" + _landed(results),
        "## Time to recover",
        "The longest, in seconds: after a worker was hit, until it (or the one in its place) asks "
        "for messages again; after calls failed, until the next one of their kind; after MongoDB "
        "was away, until the next effect.\n\n" + _recoveries(results),
    ]
    if (events := results[0].events) and results[0].side == Ours.name:
        told = ", ".join(f"`{name}` {n}" for name, n in sorted(events.items()) if _is_telling(name))
        parts += ["## What this project's workers logged", told]
    return "\n\n".join(parts) + "\n"


def _setting(result: Result, scale: Scale) -> str:
    return (
        f"Seed {result.seed}. {result.messages} registrations and {result.messages} increments "
        f"come within {scale.seconds:g} s, by Celery, as plain JSON and through SNS (stock Celery: "
        f"by Celery alone); one of {TWICE} is sent twice. {len(POOLS)} workers "
        f"({', '.join(POOLS)}) run {CONCURRENCY} tasks at a time each, under a visibility timeout "
        f"of {VISIBILITY} s and a hard time limit of {HARD_LIMIT} s; a write takes {SLOW} ms. "
        f"{_clients(result, scale)}{_calls(scale)}{_deploys(result, scale)}"
        f"A message may have {scale.attempts} attempts, and `maxReceiveCount` is {MOST_RECEIVES}. "
        "A supervisor starts every worker again that ends. Stock Celery has its best settings "
        "(`tests/chaos/stock.py`); its tasks write without a key of their own, since it gives them "
        f"none, so that what ran twice is seen. MongoDB is a replica set of {MEMBERS} members that "
        "asks for a login and speaks TLS, and acknowledges by default what one member has "
        "(`setDefaultRWConcern`): this project has to ask for a majority by itself, stock Celery's "
        "`MONGO_URI` asks for it. At the end what a majority has is counted."
    )


def _clients(result: Result, scale: Scale) -> str:
    if result.side != Ours.name:
        return ""
    return f"This project's workers call SQS with {', '.join(scale.clients)}. "


def _calls(scale: Scale) -> str:
    if not scale.rounds:
        return ""
    window = scale.seconds / (len(FAULTS) * scale.rounds)
    return (
        f"Of each kind of call, every worker meets one to three that fail about every {window:.0f} "
        "s, one kind of fault after the other; that is far more than a bad day brings, and a "
        "worker that ends with the first is started into the next. "
    )


def _deploys(result: Result, scale: Scale) -> str:
    """What is said of the messages that only this project gets."""
    if not result.failing:
        return ""
    rule = (
        "not checked, because workers of an older commit take part, which may count otherwise"
        if result.has_old
        else f"exactly {MOST_RUNS} failed runs"
        if result.is_exact
        else f"no fewer than {MOST_RUNS} failed runs; more, if a worker was killed before it had "
        "recorded one, or if MongoDB was away"
    )
    when = (
        "once all workers have it"
        if result.has_old
        else f"from {LEAD:g} s before the first worker has it on"
    )
    return (
        f"This project also gets {result.failing} messages whose task fails in each run ({rule}), "
        f"and {result.new_messages} of the task that the deploy brings, {when}. "
    )


def _rows(results: list[Result]) -> list[str]:
    def row(name: str, *cells: object) -> str:
        return f"| {name} | " + " | ".join(str(cell) for cell in cells) + " |"

    each = results
    return [
        row("users", *(r.users for r in each)),
        row("running count", *(r.count for r in each)),
        row("messages not done when time was up", *(len(r.undone) for r in each)),
        row("of those in no queue any more: lost", *(r.lost for r in each)),
        row(
            "messages whose effect is there more than once",
            *(_doubled(r) for r in each),
        ),
        row("left in the queue: visible, in flight, delayed", *(r.left["queue"] for r in each)),
        row("of the running count, by the task that the deploy brings", *(r.new for r in each)),
        row("dead letters that could run", *(len(r.dead_lettered) for r in each)),
        row("dead letters of the task that fails in each run", *(len(r.runs) for r in each)),
        row("their numbers of failed runs", *(_runs(r) for r in each)),
        row("attempts used up by other messages", *(len(r.retried) for r in each)),
        row("workers that ended by themselves", *(r.ends.get("by itself", 0) for r in each)),
        row(
            "starts refused, MongoDB or SQS being away",
            *(r.ends.get("before it was ready", 0) for r in each),
        ),
        row("deaf workers", *(", ".join(r.deaf) or 0 for r in each)),
        row("exit statuses at the end", *(_counted(r.statuses) for r in each)),
        row("stray processes", *(len(r.strays) for r in each)),
        row("longest wait of a message, s", *(f"{r.longest_wait:.0f}" for r in each)),
        row("most deliveries of a message", *(r.most_deliveries or "-" for r in each)),
        row("promises broken", *(len(r.faults()) for r in each)),
    ]


def _verdict(result: Result) -> str:
    if not (faults := result.faults()):
        return f"**{result.side}: every promise was kept.**"
    return f"**{result.side}:**\n\n" + "\n".join(f"- {fault}" for fault in faults)


def _doubled(result: Result) -> str:
    doubled = len(result.doubled)
    return f"{doubled} ({result.doubled_sent_twice} of them were sent twice)" if doubled else "0"


def _runs(result: Result) -> str:
    counts = sorted(Counter(result.runs.values()).items())
    return ", ".join(f"{n} with {runs}" for runs, n in counts) or "-"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} with {name}" for name, n in sorted(counts.items()))


def _landed(results: list[Result]) -> str:
    names = " | ".join(result.side for result in results)
    lines = [f"| | planned | least | {names} |", "| --- | --- | --- |" + " --- |" * len(results)]
    for kind, planned in sorted(results[0].planned.items()):
        cells = " | ".join(str(r.landed.get(kind, 0)) for r in results)
        lines.append(f"| {kind} | {planned} | {results[0].minimum[kind]} | {cells} |")
    return "\n".join(lines)


def _recoveries(results: list[Result]) -> str:
    kinds = sorted({kind for r in results for kind in (*r.recovery, *r.not_recovered)})
    names = " | ".join(result.side for result in results)
    lines = [f"| | {names} |", "| --- |" + " --- |" * len(results)]
    lines += [f"| {kind} | " + " | ".join(_took(r, kind) for r in results) + " |" for kind in kinds]
    return "\n".join(lines)


def _took(result: Result, kind: str) -> str:
    took = f"{result.recovery[kind]:.1f}" if kind in result.recovery else ""
    never = result.not_recovered.get(kind, 0)
    return ", ".join(part for part in (took, f"{never} never" if never else "") if part) or "-"


def _is_telling(event: str) -> bool:
    return event not in ("log", "None")
