"""What a worker makes sure of before it takes its first message: a fault stops it in one line."""

import logging
from contextlib import closing
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from celery import bootsteps
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import PyMongoError

from app.broker.checks import Finding, Level, check_redrive_policy, check_visibility_timeout
from app.broker.clients import new_client
from app.broker.options import Options
from app.broker.settler import error_code
from app.counter import Increments
from app.errors import SettingsError
from app.models import DEFAULT_DATABASE, User
from app.once import OnceRecord
from app.settings import Settings, get_settings

logger = logging.getLogger(__name__)

#: Seconds for SQS to say how a queue is made.
QUEUE_TIMEOUT = 5

#: How SQS speaks of a queue that is not there: boto3's class, and SQS's older word.
NO_QUEUE = frozenset({"QueueDoesNotExist", "NonExistentQueue"})

#: Milliseconds to find the primary. A worker that is started while MongoDB is away is started
#: again by whatever runs it.
PRIMARY_TIMEOUT = 10_000


class StartChecks(bootsteps.Step):
    """Runs first in every worker, in its main process, before the pool forks."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        settings = get_settings().require_worker()
        check_numbers(worker.app)
        check_queues(Options.read(worker.app.conf.broker_transport_options))
        prepare_database(settings)


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


def check_queues(options: Options) -> None:
    """Ask SQS once for each queue; the client is closed before any fork.

    Raises SettingsError for a queue that is not there or has no redrive policy, since a message
    whose worker dies each time would go round for ever. What else is wrong with it is logged, and
    `celery -A app sqs doctor` says more. Where SQS does not answer, or these credentials may not
    ask, the worker starts: neither says that anything is wrong with the queue.
    """
    with closing(new_client(options, read_timeout=QUEUE_TIMEOUT, tries=1)) as client:
        for name, address in options.queues.items():
            try:
                answer: Any = client.get_queue_attributes(
                    QueueUrl=address.url, AttributeNames=["RedrivePolicy", "VisibilityTimeout"]
                )
            except ClientError as exc:
                _not_checked(name, address.url, error_code(exc))
            except BotoCoreError as exc:
                _not_checked(name, address.url, error_code(exc))
                return  # No answer at all: the other queues would only take as long again.
            else:
                attributes = answer.get("Attributes", {})
                for finding in check_redrive_policy(name, options, attributes):
                    _heed(finding)
                _heed(check_visibility_timeout(name, options, attributes))


def _not_checked(name: str, url: str, code: str) -> None:
    if code in NO_QUEUE:
        raise SettingsError(f"{url}: there is no such queue. Check the URL and AWS_REGION.")
    logger.warning(
        "Whether queue %s has a redrive policy is not known (%s); see `celery -A app sqs doctor`.",
        name,
        code,
        extra={"event": "start.unchecked", "queue": name, "error": code},
    )


def _heed(finding: Finding) -> None:
    if finding.level is not Level.FAULT:
        return
    text = f"Queue {finding.subject}: {finding.check}: {finding.text}. {finding.fix}"
    if finding.is_fatal:
        raise SettingsError(text)
    logger.warning("%s", text, extra={"event": "start.fault", "queue": finding.subject})


def prepare_database(settings: Settings) -> None:
    """Make the indexes that are the idempotency keys; the client is closed before any fork.

    Raises SettingsError where MongoDB is away, or is no replica set (transactions need one).
    """
    uri = settings.require_mongo_uri()
    try:
        with MongoClient[dict[str, Any]](
            uri, serverSelectionTimeoutMS=PRIMARY_TIMEOUT, timeoutMS=PRIMARY_TIMEOUT
        ) as client:
            require_replica_set(client)
            database = client.get_default_database(DEFAULT_DATABASE)
            for document in (User, OnceRecord, Increments):
                _make_indexes(database, document._meta)
    except ValueError:
        raise SettingsError("MONGO_URI: this is no address of a MongoDB.") from None
    except PyMongoError as exc:
        raise SettingsError(
            f"MONGO_URI: MongoDB does not answer as it should ({type(exc).__name__}). "
            "Check that it runs, that the address is right, and that this user may create indexes."
        ) from exc


def require_replica_set(client: MongoClient[dict[str, Any]]) -> None:
    """Raise SettingsError where this MongoDB is standalone."""
    hello = client.admin.command("hello")
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        raise SettingsError(
            "MONGO_URI: this mongod is standalone, and transactions need a replica set. "
            "Start it with --replSet and run rs.initiate(); one node is enough."
        )


def _make_indexes(database: Database[dict[str, Any]], meta: dict[str, Any]) -> None:
    for index in meta["indexes"]:
        options = {name: value for name, value in index.items() if name != "fields"}
        database[meta["collection"]].create_index([(f, 1) for f in index["fields"]], **options)
