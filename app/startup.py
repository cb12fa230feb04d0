"""The checks of a worker before its first message. If one fails, the worker exits with one line."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pymongo
from celery import bootsteps
from celery.utils.nodenames import node_format
from pymongo.errors import PyMongoError

from app.errors import SettingsError
from app.log_stream import LogFile
from app.mongo import address_of, open_client
from app.probe import try_writes
from app.schema import Fault, find_faults, make_indexes, require_replica_set
from app.settings import Settings, get_settings
from sqs_broker.errors import label
from sqs_broker.machine import files
from sqs_broker.options import Options
from sqs_broker.rules.routes import circle, in_words
from sqs_broker.tools.startup import check_queues

logger = logging.getLogger(__name__)

#: Seconds for all MongoDB checks together. If MongoDB is unavailable, the worker exits, and the
#: system that runs it starts it again.
MONGODB_TIMEOUT = 10


class StartChecks(bootsteps.Step):
    """Runs the checks first in every worker, in its main process, before the pool forks."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        settings = get_settings().require_worker()
        check_state_file(worker.statedb)
        check_log_file(worker.logfile, worker.hostname)
        check_numbers(worker.app)
        broker = Options.read(worker.app.conf.broker_transport_options)
        check_dead_letter_urls(broker)
        check_queues(broker)
        prepare_database(settings)


def check_state_file(path: str | None) -> None:
    """Raise SettingsError if another user may have written the file, which Celery unpickles."""
    if path and (why := files.fault(Path(path))):
        raise SettingsError(
            f"--statedb: {why}. Set it to a file in a directory that only this user may write to."
        )


def check_log_file(path: str | None, hostname: str) -> None:
    """Raise SettingsError if the log cannot be written to this file. Celery completes its name."""
    if not path:
        return
    try:
        LogFile(node_format(path, hostname)).close()
    except OSError as exc:
        raise SettingsError(
            f"--logfile: {path} cannot be written to ({type(exc).__name__}). Set it to a file in a "
            "directory that exists and that this user may write to."
        ) from None


def check_numbers(celery_app: Any) -> None:
    """Raise ConfigurationError, with both names, if two settings contradict each other."""
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
        f"{whose}{soft_name} ({soft} s) must be less than {hard_name} ({hard} s). "
        "Otherwise a task is killed before it reaches its soft limit."
    )


def check_dead_letter_urls(options: Options) -> None:
    """Raise SettingsError, with the variables, if dead letters return to their own queue."""
    if found := circle(options):
        more = get_settings().sqs_queues
        variables = {"SQS_QUEUES" if r.configured in more else "AWS_SQS_DLQ_URL" for r in found}
        names = " and ".join(sorted(variables))
        raise SettingsError(
            f"{names}: {in_words(found)}. Set it to a queue that no worker receives from."
        )


def prepare_database(settings: Settings) -> None:
    """Create the indexes that are the idempotency keys, and try a write as the tasks do it. The
    client is closed before any fork.

    Raises SettingsError if MongoDB is unavailable, is not a replica set (transactions need one),
    has collections in which a user could be lost or stored twice, or refuses the writes of tasks.
    """
    uri = settings.require_mongo_uri()
    address = address_of(uri)
    if address.replaced:
        logger.warning(
            "MONGO_URI: the values of %s are not used; this program sets its own "
            "(docs/mongodb.md).",
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
            f"MONGO_URI: MongoDB does not answer or refuses a call ({label(exc)}). Check that a "
            "majority of its members runs, that the address is right, and that this user may "
            "read, write and create indexes. `celery -A app sqs doctor` shows details."
        ) from exc


def refuse(faults: Sequence[Fault]) -> None:
    """Raise SettingsError with the first fault and its fix, if there is a fault."""
    for fault in faults:
        raise SettingsError(f"MONGO_URI: MongoDB: {fault}. {fault.fix}")
