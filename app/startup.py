"""What a worker makes sure of before it takes its first message: a fault stops it in one line."""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pymongo
from celery import bootsteps
from pymongo.errors import PyMongoError

from app.errors import SettingsError
from app.mongo import Client, address_of, open_client
from app.probe import try_writes
from app.schema import Fault, find_faults, make_indexes
from app.settings import Settings, get_settings
from sqs_broker.errors import label
from sqs_broker.machine import files
from sqs_broker.options import Options
from sqs_broker.rules.routes import circle, told
from sqs_broker.sqs.boto import driver_for
from sqs_broker.sqs.errors import SqsError
from sqs_broker.sqs.queue import Queue
from sqs_broker.tools.checks import (
    Finding,
    Level,
    check_redrive_policy,
    check_routes,
    check_visibility_timeout,
)

logger = logging.getLogger(__name__)

#: Seconds for SQS to say how a queue is made.
QUEUE_TIMEOUT = 5

#: Seconds for all that MongoDB is asked. A worker that is started while MongoDB is away is started
#: again by whatever runs it.
MONGODB_TIMEOUT = 10


class StartChecks(bootsteps.Step):
    """Runs first in every worker, in its main process, before the pool forks."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        settings = get_settings().require_worker()
        check_state_file(worker.statedb)
        check_numbers(worker.app)
        broker = Options.read(worker.app.conf.broker_transport_options)
        check_dead_letter_urls(broker)
        check_queues(broker)
        prepare_database(settings)


def check_state_file(path: str | None) -> None:
    """Raise SettingsError where another user may have written what Celery unpickles."""
    if path and (why := files.fault(Path(path))):
        raise SettingsError(
            f"--statedb: {why}. Name a file in a directory where this user alone may write."
        )


def check_numbers(celery_app: Any) -> None:
    """Raise ConfigurationError, with both names, where two settings contradict each other."""
    conf = celery_app.conf
    hardest = conf.task_time_limit
    _check_order(None, conf.task_soft_time_limit, hardest)
    for task in celery_app.tasks.values():
        soft = task.soft_time_limit or conf.task_soft_time_limit
        hard = task.time_limit or conf.task_time_limit
        _check_order(task.name, soft, hard)
        hardest = None if None in (hard, hardest) else max(hard, hardest)
    Options.read(conf.broker_transport_options).policy.check(hardest)


def _check_order(task: str | None, soft: float | None, hard: float | None) -> None:
    if soft is None or hard is None or soft < hard:
        return
    whose = f"Task {task}: " if task else ""
    soft_name = "soft_time_limit" if task else "TASK_SOFT_TIME_LIMIT"
    hard_name = "time_limit" if task else "TASK_TIME_LIMIT"
    raise SettingsError(
        f"{whose}{soft_name} ({soft} s) must be less than {hard_name} ({hard} s), "
        "or a task is killed before it is told to stop."
    )


def check_dead_letter_urls(options: Options) -> None:
    """Raise SettingsError, with the variables, where dead letters come back to where they began."""
    if found := circle(options):
        more = get_settings().sqs_queues
        variables = {"SQS_QUEUES" if r.configured in more else "AWS_SQS_DLQ_URL" for r in found}
        names = " and ".join(sorted(variables))
        raise SettingsError(f"{names}: {told(found)}. Name a queue there that no worker receives.")


def check_queues(options: Options) -> None:
    """Ask SQS once for each queue; the connection is closed before any fork.

    Raises SettingsError for a queue that is not there or has no redrive policy, since a message
    whose worker dies each time would go round for ever, and where these policies lead dead letters
    back to where they began. What else is wrong with it is logged, and
    `celery -A app sqs doctor` says more. Where SQS does not answer, or these credentials may not
    ask, the worker starts: neither says that anything is wrong with the queue.
    """
    policies: dict[str, str] = {}
    with closing(driver_for(options, read_timeout=QUEUE_TIMEOUT, tries=1)) as driver:
        for name, address in options.queues.items():
            queue = Queue(address.url, driver)
            try:
                attributes = queue.attributes("RedrivePolicy", "VisibilityTimeout").values
            except SqsError as exc:
                _not_checked(name, address.url, exc)
                if not exc.has_reached:
                    break  # No answer at all: the other queues would only take as long again.
            else:
                policies[address.url] = attributes.get("RedrivePolicy", "")
                for finding in check_redrive_policy(name, options, attributes):
                    _heed(finding)
                _heed(check_visibility_timeout(name, options, attributes))
    _heed(check_routes(options, policies))


def _not_checked(name: str, url: str, error: SqsError) -> None:
    if error.is_no_queue:
        raise SettingsError(f"{url}: there is no such queue. Check the URL and AWS_REGION.")
    logger.warning(
        "Whether queue %s has a redrive policy is not known (%s); see `celery -A app sqs doctor`.",
        name,
        error.code,
        extra={"event": "start.unchecked", "queue": name, "error": error.code},
    )


def _heed(finding: Finding) -> None:
    if finding.level is not Level.FAULT:
        return
    text = f"Queue {finding.subject}: {finding.check}: {finding.text}. {finding.fix}"
    if finding.is_fatal:
        raise SettingsError(text)
    logger.warning("%s", text, extra={"event": "start.fault", "queue": finding.subject})


def prepare_database(settings: Settings) -> None:
    """Make the indexes that are the idempotency keys, and write as the tasks do; the client is
    closed before any fork.

    Raises SettingsError if MongoDB is away, is no replica set (transactions need one), has
    collections in which a user could be lost or doubled, or does not take what the tasks write.
    """
    uri = settings.require_mongo_uri()
    address = address_of(uri)
    if address.replaced:
        logger.warning(
            "MONGO_URI: %s: not used; this program has its own (docs/mongodb.md).",
            ", ".join(address.replaced),
            extra={"event": "start.replaced", "reason": ", ".join(address.replaced)},
        )
    try:
        with open_client(uri) as client, pymongo.timeout(MONGODB_TIMEOUT):
            require_replica_set(client)
            database = client[address.database]
            refuse(make_indexes(database, find_faults(database)))
            try_writes(database)
    except PyMongoError as exc:
        raise SettingsError(
            f"MONGO_URI: MongoDB does not answer as it should ({label(exc)}). Check that it runs, "
            "that a majority of its members does, that the address is right, and that this user "
            "may read and write, and create indexes. `celery -A app sqs doctor` says more."
        ) from exc


def refuse(faults: Sequence[Fault]) -> None:
    """Raise SettingsError, with the first fault and its fix, if there is one."""
    for fault in faults:
        raise SettingsError(f"MONGO_URI: MongoDB: {fault}. {fault.fix}")


def require_replica_set(client: Client) -> None:
    """Raise SettingsError where this MongoDB is standalone."""
    hello = client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise SettingsError(
            "MONGO_URI: this mongod is standalone, and transactions need a replica set. "
            "Start it with --replSet and run rs.initiate(); one node is enough."
        )
