"""`sqs doctor`: what a worker depends on, each with its fault and the fix."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from app.commands.database import check_database
from app.settings import get_settings
from app.startup import check_dead_letter_urls, check_numbers
from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options
from sqs_broker.rules.due import CLOCK_TOLERANCE
from sqs_broker.rules.routes import circle
from sqs_broker.sqs.boto import asked, quick_client
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Driver, Queue
from sqs_broker.sqs.requests import ALL, name_of
from sqs_broker.tools.checks import (
    Finding,
    Level,
    Subject,
    check_dead_letters,
    check_queue,
    check_routes,
)
from sqs_broker.tools.commands.broker import driver_of, options_of, refusal
from sqs_broker.tools.commands.output import print_json, printable, say
from sqs_broker.tools.commands.queues import is_aws
from sqs_broker.tools.permissions import (
    ON_DEAD_LETTERS,
    ON_QUEUE,
    check_permissions,
    permission,
)

#: What is said of settings, whose own text names the way out.
NOT_SO = "Change it: no worker starts like this."

#: The check that fails where nothing else of a queue can be looked at.
REACHED = "reached"

#: https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
AWS_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/")

#: Each level as a line begins with it.
SHOWN = {Level.OK: "ok     ", Level.FAULT: "FAULT  ", Level.UNKNOWN: "?      "}


@click.command("doctor", epilog="Example: celery -A app sqs doctor --json | jq 'select(.fix)'")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a check and line.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Check what a worker depends on.

    Says what is wrong and how to put it right. It takes the settings and credentials it is run
    with, so run it where and as the worker runs. It sends, receives, changes and deletes no
    message. `?` is what it could not look at.

    Exit status 1 where there is a fault.
    """
    counted: Counter[Level] = Counter()
    for finding in examine(ctx.obj.app):
        counted[finding.level] += 1
        if as_json:
            facts = asdict(finding)
            del facts["is_fatal"]
            print_json(facts)
        else:
            _show(finding)
    ok, faults, unknown = (counted[level] for level in (Level.OK, Level.FAULT, Level.UNKNOWN))
    say(f"{ok} ok, {faults} fault{'' if faults == 1 else 's'}, {unknown} unknown.")
    ctx.exit(1 if counted[Level.FAULT] else 0)


def examine(celery_app: Any) -> Iterator[Finding]:
    """All checks, one after the other. What cannot be read is a finding and raises nothing."""
    try:
        options = options_of(celery_app)
    except ConfigurationError as exc:
        yield Subject("settings", "complete").fault(exc.message, NOT_SO)
        return
    yield from check_settings(celery_app)
    yield from check_regions(options)
    driver = driver_of(options)
    if is_aws(options.endpoint_url):
        yield check_identity(quick_client(options, "sts"))
    yield check_clock(Queue(next(iter(options.queues.values())).url, driver))
    policies: dict[str, str] = {}
    for name in options.queues:
        yield from _check_queue_pair(driver, name, options, policies)
    if not circle(options):  # Else it was said of the settings.
        yield check_routes(options, policies)
    if (uri := get_settings().mongo_uri) is not None:
        yield from check_database(uri.get_secret_value())


def check_settings(celery_app: Any) -> Iterator[Finding]:
    """Compare the settings with each other, as a worker does when it starts."""
    checks: dict[str, Callable[[], Any]] = {
        "complete": lambda: get_settings().require_worker(),
        "dead letters": lambda: check_dead_letter_urls(options_of(celery_app)),
        "tasks": lambda: celery_app.loader.import_default_modules(),
        "numbers": lambda: check_numbers(celery_app),
    }
    for check, look in checks.items():
        try:
            look()
        except ConfigurationError as exc:
            yield Subject("settings", check).fault(exc.message, NOT_SO)
        else:
            yield Subject("settings", check).ok("as a worker needs them")


def check_regions(options: Options) -> Iterator[Finding]:
    """Compare AWS_REGION with the region that the URLs of queues on AWS name.

    SQS of another region answers that there is no such queue.
    """
    for name, address in options.queues.items():
        for url in filter(None, (address.url, address.dead_letter_url)):
            if (found := AWS_URL.match(url)) and found[1] != options.region:
                yield Subject(name, "region").fault(
                    f"{url} is in {found[1]}, and AWS_REGION is {options.region}",
                    "Make them one.",
                )


def check_identity(sts: Any) -> Finding:
    """Whose credentials these are; everybody may ask.

    https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    """
    check = Subject("credentials", "whose")
    try:
        return check.ok(asked(sts.get_caller_identity)["Arn"])
    except SqsError as exc:
        return check.unknown(f"STS did not say: {exc.code}")


def check_clock(queue: Queue, now: Callable[[], float] = time.time) -> Finding:
    """Compare this machine's clock with SQS's, which is told in whole seconds."""
    check = Subject("clock", "SQS's time")
    before = now()
    try:
        date = queue.attributes("QueueArn").at
    except SqsError as exc:
        if not exc.has_reached:
            return check.unknown(f"SQS gave no answer: {exc.code}")
        date = exc.at  # A refusal has one all the same.
    after = now()
    if date is None:
        return check.unknown("SQS's answer has no date")
    ahead = max(before - (date.timestamp() + 1), 0)
    behind = max(date.timestamp() - after, 0)
    if max(ahead, behind) > CLOCK_TOLERANCE:
        off = f"{ahead:.0f} s ahead" if ahead else f"{behind:.0f} s behind"
        return check.fault(
            f"this machine's clock is {off}: delays end at the wrong time, and from a few minutes "
            "on SQS refuses every call",
            "Let a time service (NTP, chrony) keep it.",
        )
    return check.ok(f"this machine's clock agrees within {CLOCK_TOLERANCE} s")


def _check_queue_pair(
    driver: Driver, name: str, options: Options, policies: dict[str, str]
) -> Iterator[Finding]:
    """Adds the redrive policies of both to `policies`."""
    address = options.queue(name)
    queue = Queue(address.url, driver)
    attributes, finding = _attributes_of(queue)
    yield finding
    if attributes is not None:
        policies[address.url] = attributes.get("RedrivePolicy", "")
        yield from check_queue(name, options, attributes)
    if finding.check != REACHED:
        yield from check_permissions(queue, ON_QUEUE)
    if address.dead_letter_url is None:
        return
    dead_letter_queue = Queue(address.dead_letter_url, driver)
    dead_letters, finding = _attributes_of(dead_letter_queue, is_needed=False)
    yield finding
    if dead_letters is not None:
        policies[address.dead_letter_url] = dead_letters.get("RedrivePolicy", "")
    if attributes is not None and dead_letters is not None:
        yield from check_dead_letters(name, address.dead_letter_url, attributes, dead_letters)
    if finding.check != REACHED:
        yield from check_permissions(dead_letter_queue, ON_DEAD_LETTERS)


def _attributes_of(
    queue: Queue, *, is_needed: bool = True
) -> tuple[Mapping[str, str] | None, Finding]:
    """A queue's attributes, and whether they could be read. A worker needs those of its queue."""
    action, name = "GetQueueAttributes", name_of(queue.url)
    try:
        attributes = queue.attributes(ALL).values
    except SqsError as exc:
        if not exc.is_denied:
            fix = "Nothing else of it could be checked."
            return None, Subject(name, REACHED).fault(refusal(exc, action, queue.url), fix)
        if is_needed:
            return None, permission(name, action, exc)
        text = "not allowed, so that retention and size were not checked"
        return None, Subject(name, f"sqs:{action}").unknown(text, "A worker does without it.")
    return attributes, permission(name, action, None)


def _show(finding: Finding) -> None:
    line = f"{SHOWN[finding.level]}{finding.subject}: {finding.check}: {finding.text}"
    click.echo(printable(line))
    if finding.fix:
        click.echo(printable(f"       → {finding.fix}"))
