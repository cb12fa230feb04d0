"""The checks of a worker before its first message. If one fails, the worker exits with one line."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from celery import bootsteps

from sqs_broker.errors import ConfigurationError, UnknownQueue
from sqs_broker.options import Options
from sqs_broker.rules.routes import refuse_circle
from sqs_broker.sqs.drivers import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.broker import without_credentials
from sqs_broker.tools.checks import (
    Finding,
    Level,
    check_redrive_policy,
    check_routes,
    check_visibility_timeout,
    compare_clocks,
)
from sqs_broker.worker.defaults import is_elsewhere
from sqs_broker.worker.log_texts import hide_texts

logger = logging.getLogger(__name__)

#: Seconds for SQS to begin to return the attributes of a queue. The whole call may take twice as
#: long.
QUEUE_TIMEOUT = 5


class StartChecks(bootsteps.Step):
    """Runs the checks in every worker, in its main process, before the pool forks."""

    def __init__(self, worker: Any, **given: Any) -> None:
        super().__init__(worker, **given)
        if is_elsewhere(worker.app):
            return
        check_limits(worker.app)
        options = Options.read(worker.app.conf.broker_transport_options)
        check_consumed(worker.app, options)
        refuse_circle(options)
        check_queues(options)
        if not options.log_texts:
            hide_texts()


def check_limits(celery_app: Any) -> None:
    """Raise ConfigurationError, with both names, if two settings contradict each other. Log a
    warning if a task may run longer than its lease, which is then extended again and again."""
    conf = celery_app.conf
    policy = Options.read(conf.broker_transport_options).policy
    policy.check_attempts()
    limits = [task.time_limit or conf.task_time_limit for task in celery_app.tasks.values()]
    hardest = None if None in limits else max(limits, default=conf.task_time_limit)
    try:
        policy.check_lease(hardest)
    except ConfigurationError as exc:
        if not policy.heartbeat:
            raise
        logger.warning("%s", exc.message, extra={"event": "start.fault"})


def check_consumed(celery_app: Any, options: Options) -> None:
    """Raise ConfigurationError if the worker is to read a queue that is not configured."""
    for name in celery_app.amqp.queues.consume_from:
        try:
            options.queue(name)
        except UnknownQueue as exc:
            raise ConfigurationError(
                f"{exc} This worker is to read it: see -Q and task_queues."
            ) from exc


def check_queues(options: Options, now: Callable[[], float] = time.time) -> None:
    """Check the attributes of each queue, with one call each. The connection is closed before a
    fork.

    Raises ConfigurationError if a queue does not exist, or has no redrive policy: then a message
    whose worker dies each time would be delivered for ever. Also raises it if these policies send
    dead letters back to their own queue. Other faults are logged; `celery -A … sqs doctor` shows
    details. If SQS does not answer, or refuses the call to these credentials, the worker starts:
    neither means that the queue is wrong. A clock that is not that of SQS is logged too.
    """
    policies: dict[str, str] = {}
    clocks: list[Finding] = []
    driver = driver_for(options, read_timeout=QUEUE_TIMEOUT, tries=1, seconds=2 * QUEUE_TIMEOUT)
    with closing(driver):
        for name, address in options.queues.items():
            queue, before = Queue(address.url, driver), now()
            try:
                answer = queue.attributes("RedrivePolicy", "VisibilityTimeout")
            except SqsError as exc:
                # If the clocks differ by minutes, SQS refuses each call, with its own time.
                clocks.append(compare_clocks(exc.at, before, now()))
                _not_checked(name, address.url, exc)
                if not exc.has_reached:
                    break  # SQS does not answer, so the other queues would only take as long again.
            else:
                attributes = answer.values
                clocks.append(compare_clocks(answer.at, before, now()))
                policies[address.url] = attributes.get("RedrivePolicy", "")
                for finding in check_redrive_policy(name, options, attributes):
                    _require_not_fatal(finding)
                _require_not_fatal(check_visibility_timeout(name, options, attributes))
    _require_not_fatal(check_routes(options, policies))
    if wrong := next((clock for clock in clocks if clock.level is Level.FAULT), None):
        _warn_of_clock(wrong)


def _not_checked(name: str, url: str, error: SqsError) -> None:
    if error.is_no_queue:
        raise ConfigurationError(f"{url}: this queue does not exist. Check its URL and `region`.")
    if error.has_no_credentials:
        logger.warning(
            "The redrive policy of queue %s was not checked: %s",
            name,
            without_credentials(error),
            extra={"event": "start.unchecked", "queue": name, "error": error.code},
        )
        return
    logger.warning(
        "Could not check the redrive policy of queue %s (%s); see `celery -A … sqs doctor`.",
        name,
        error.code,
        extra={"event": "start.unchecked", "queue": name, "error": error.code},
    )


def _warn_of_clock(clock: Finding) -> None:
    logger.warning(
        "Compared with the clock of SQS, %s. %s",
        clock.text,
        clock.fix,
        extra={"event": "start.clock"},
    )


def _require_not_fatal(finding: Finding) -> None:
    """Raise ConfigurationError for a fatal fault. Log any other fault."""
    if finding.level is not Level.FAULT:
        return
    text = f"Queue {finding.subject}: {finding.check}: {finding.text}. {finding.fix}"
    if finding.is_fatal:
        raise ConfigurationError(text)
    logger.warning("%s", text, extra={"event": "start.fault", "queue": finding.subject})
