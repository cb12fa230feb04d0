"""The checks of `sqs doctor` that are the same in every project, and those that a project adds."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from sqs_broker.errors import ConfigurationError
from sqs_broker.options import Options
from sqs_broker.rules.routes import circle, in_words
from sqs_broker.sqs.boto import ask, quick_client
from sqs_broker.sqs.driver import Driver
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.sqs.requests import ALL, name_of
from sqs_broker.tools.broker import driver_of, is_aws, options_of, refusal, without_credentials
from sqs_broker.tools.checks import (
    Finding,
    Subject,
    check_dead_letters,
    check_queue,
    check_routes,
    compare_clocks,
)
from sqs_broker.tools.control import check_control
from sqs_broker.tools.pauses import check_pauses
from sqs_broker.tools.permissions import (
    ON_DEAD_LETTERS,
    ON_QUEUE,
    check_permissions,
    permission,
)

#: The subject of checks of the configuration.
SETTINGS = "settings"

#: The fix for a fault of the configuration. The text of the fault says what to change.
CORRECT_IT = "Change this setting, then run this command again. Until then no worker starts."

#: The check that fails if nothing else of a queue can be checked.
REACHED = "reached"

#: https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
AWS_URL = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/")


def examine(celery_app: Any) -> Iterator[Finding]:
    """Run the broker's checks, and then those that the project gave to `install`.

    If something cannot be read, that is a finding. Raises ClickException only if the app does not
    use this broker.
    """
    try:
        options = options_of(celery_app)
    except ConfigurationError as exc:
        yield Subject(SETTINGS, "complete").fault(exc.message, CORRECT_IT)
        return
    yield _check_tasks(celery_app)
    yield from check_regions(options)
    yield from _check_sqs(options)
    yield from check_control(options.control_options())
    yield from check_pauses(options)
    from kombu.utils.imports import symbol_by_name

    for place in celery_app.sqs_checks:
        yield from symbol_by_name(place)(celery_app)


def setting(check: str, run: Callable[[], object]) -> Finding:
    """Check a setting with a function that raises ConfigurationError if the setting is wrong."""
    subject = Subject(SETTINGS, check)
    try:
        run()
    except ConfigurationError as exc:
        return subject.fault(exc.message, CORRECT_IT)
    return subject.ok("as a worker needs it")


def _check_tasks(celery_app: Any) -> Finding:
    # A task with a wrong option raises when its module is imported.
    return setting("tasks", celery_app.loader.import_default_modules)


def _check_sqs(options: Options) -> Iterator[Finding]:
    try:
        driver = driver_of(options)
    except click.ClickException as exc:
        fix = "Nothing of SQS could be checked."
        yield Subject(SETTINGS, "AWS").fault(exc.message, fix)
        return
    if is_aws(options.endpoint_url):
        yield check_identity(quick_client(options, "sts"))
    yield check_clock(Queue(next(iter(options.queues.values())).url, driver))
    policies: dict[str, str] = {}
    for name in options.queues:
        yield from _check_queue_pair(driver, name, options, policies)
    if loop := circle(options):
        # The redrive policies would only repeat it.
        text = f"dead_letter_url: {in_words(loop)}"
        yield Subject(SETTINGS, "dead letters").fault(text, CORRECT_IT)
    else:
        yield check_routes(options, policies)


def check_regions(options: Options) -> Iterator[Finding]:
    """Compare the option `region` with the region in the URLs of queues on AWS.

    In another region, SQS answers that the queue does not exist.
    """
    for name, address in options.queues.items():
        region = address.region or options.region
        for url in filter(None, (address.url, address.dead_letter_url)):
            if (found := AWS_URL.match(url)) and found[1] != region:
                yield Subject(name, "region").fault(
                    f"{url} is in {found[1]}, but `region` is {region}",
                    "Make them equal.",
                )


def check_identity(sts: Any) -> Finding:
    """The owner of these credentials. Every AWS user may make this call.

    https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    """
    check = Subject("credentials", "whose")
    try:
        return check.ok(ask(sts.get_caller_identity)["Arn"])
    except SqsError as exc:
        if exc.has_no_credentials:
            return check.unknown(without_credentials(exc))
        return check.unknown(f"STS did not answer: {exc.code}")


def check_clock(queue: Queue, now: Callable[[], float] = time.time) -> Finding:
    """Compare this machine's clock with that of SQS, whose answers have whole seconds."""
    check = Subject("clock", "SQS's time")
    before = now()
    try:
        date = queue.attributes("QueueArn").at
    except SqsError as exc:
        if exc.has_no_credentials:
            return check.unknown(without_credentials(exc))
        if not exc.has_reached:
            return check.unknown(f"SQS did not answer: {exc.code}")
        date = exc.at  # An error response has a date too.
    return compare_clocks(date, before, now())


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
        yield Subject(name, "dead-letter queue").fault(
            "none is configured, so a worker cannot dead-letter a message",
            "Set dead_letter_url in predefined_queues.",
            is_fatal=True,
        )
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
