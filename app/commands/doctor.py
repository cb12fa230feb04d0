"""`sqs doctor`: checks all that a worker needs, and shows each fault with its fix."""

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
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
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
from sqs_broker.tools.commands.output import print_json, print_note, printable
from sqs_broker.tools.commands.queues import is_aws
from sqs_broker.tools.permissions import (
    ON_DEAD_LETTERS,
    ON_QUEUE,
    check_permissions,
    permission,
)

#: The fix for a fault of the settings. The text of the fault says what to change.
NOT_SO = "Correct it: no worker starts with this setting."

#: The check that fails if nothing else of a queue can be checked.
REACHED = "reached"

#: https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
AWS_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/")

#: The beginning of a line, by level.
SHOWN = {Level.OK: "ok     ", Level.FAULT: "FAULT  ", Level.UNKNOWN: "?      "}


@click.command("doctor", epilog="Example: celery -A app sqs doctor --json | jq 'select(.fix)'")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line and check.")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Check everything that a worker needs.

    Shows each fault and how to correct it. It uses the settings and credentials of its own
    environment, so run it on the worker's machine and as the worker's user. It sends, receives,
    changes and deletes no message. `?` marks something that could not be checked.

    Exits with status 1 if there is a fault.
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
    print_note(f"{ok} ok, {faults} fault{'' if faults == 1 else 's'}, {unknown} unknown.")
    ctx.exit(1 if counted[Level.FAULT] else 0)


def examine(celery_app: Any) -> Iterator[Finding]:
    """Run all checks, one after the other. If something cannot be read, that is a finding; nothing
    is raised."""
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
    if not circle(options):  # If there is a loop already, `check_settings` has reported it.
        yield check_routes(options, policies)
    if (uri := get_settings().mongo_uri) is not None:
        yield from check_database(uri.get_secret_value())


def check_settings(celery_app: Any) -> Iterator[Finding]:
    """Check the settings as a worker does when it starts."""
    checks: dict[str, Callable[[], Any]] = {
        "complete": lambda: get_settings().require_worker(),
        "dead letters": lambda: check_dead_letter_urls(options_of(celery_app)),
        "tasks": lambda: celery_app.loader.import_default_modules(),
        "numbers": lambda: check_numbers(celery_app),
    }
    for check, run in checks.items():
        try:
            run()
        except ConfigurationError as exc:
            yield Subject("settings", check).fault(exc.message, NOT_SO)
        else:
            yield Subject("settings", check).ok("as a worker needs them")


def check_regions(options: Options) -> Iterator[Finding]:
    """Compare AWS_REGION with the region in the URLs of queues on AWS.

    In another region, SQS answers that the queue does not exist.
    """
    for name, address in options.queues.items():
        for url in filter(None, (address.url, address.dead_letter_url)):
            if (found := AWS_URL.match(url)) and found[1] != options.region:
                yield Subject(name, "region").fault(
                    f"{url} is in {found[1]}, but AWS_REGION is {options.region}",
                    "Make them equal.",
                )


def check_identity(sts: Any) -> Finding:
    """The owner of these credentials. Every AWS user may make this call.

    https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    """
    check = Subject("credentials", "whose")
    try:
        return check.ok(asked(sts.get_caller_identity)["Arn"])
    except SqsError as exc:
        return check.unknown(f"STS did not answer: {exc.code}")


def check_clock(queue: Queue, now: Callable[[], float] = time.time) -> Finding:
    """Compare this machine's clock with that of SQS, whose answers have whole seconds."""
    check = Subject("clock", "SQS's time")
    before = now()
    try:
        date = queue.attributes("QueueArn").at
    except SqsError as exc:
        if not exc.has_reached:
            return check.unknown(f"SQS did not answer: {exc.code}")
        date = exc.at  # An error response has a date too.
    after = now()
    if date is None:
        return check.unknown("SQS's answer has no date")
    ahead = max(before - (date.timestamp() + 1), 0)
    behind = max(date.timestamp() - after, 0)
    if max(ahead, behind) > CLOCK_TOLERANCE:
        off = f"{ahead:.0f} s ahead" if ahead else f"{behind:.0f} s behind"
        return check.fault(
            f"this machine's clock is {off}: delays end at the wrong time, and SQS refuses every "
            "call if the difference is a few minutes or more",
            "Synchronize it with a time service (NTP, chrony).",
        )
    return check.ok(f"this machine's clock agrees within {CLOCK_TOLERANCE} s")


def _check_queue_pair(
    driver: Driver, name: str, options: Options, policies: dict[str, str]
) -> Iterator[Finding]:
    """Check a queue and its dead-letter queue. Adds their redrive policies to `policies`."""
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
    """A queue's attributes, and a finding whether they could be read. `is_needed`: whether a worker
    needs them."""
    action, name = "GetQueueAttributes", name_of(queue.url)
    try:
        attributes = queue.attributes(ALL).values
    except SqsError as exc:
        if not exc.is_denied:
            fix = "Nothing else of this queue could be checked."
            return None, Subject(name, REACHED).fault(refusal(exc, action, queue.url), fix)
        if is_needed:
            return None, permission(name, action, exc)
        text = "not allowed, so retention and size were not checked"
        return None, Subject(name, f"sqs:{action}").unknown(text, "A worker does not need it.")
    return attributes, permission(name, action, None)


def _show(finding: Finding) -> None:
    line = f"{SHOWN[finding.level]}{finding.subject}: {finding.check}: {finding.text}"
    click.echo(printable(line))
    if finding.fix:
        click.echo(printable(f"       → {finding.fix}"))
