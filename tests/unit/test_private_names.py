"""The private names of other libraries that we touch: the one list, and each is still there.

celery, kombu, flower, mongoengine and Python's `logging` promise nothing about them, so an upgrade
starts here. The list is complete: a further one that is read or written fails a test, and so does a
name of ours that hides one of theirs.
"""

import ast
import importlib
import logging
import pkgutil
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import mongoengine
import pytest
from billiard.pool import ApplyResult
from billiard.popen_fork import Popen
from billiard.process import BaseProcess as Process
from celery import Celery, platforms
from celery import Task as CeleryTask
from celery.app.events import Events as CeleryEvents
from celery.app.registry import TaskRegistry
from celery.apps.worker import install_worker_term_hard_handler
from celery.concurrency.asynpool import AsynPool, ResultHandler
from celery.concurrency.asynpool import Worker as PoolWorker
from celery.concurrency.prefork import TaskPool
from celery.events.dispatcher import EventDispatcher
from celery.loaders.app import AppLoader
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.request import Request
from celery.worker.worker import WorkController
from flower.api.tasks import GetQueueLengths
from flower.views.broker import BrokerView
from flower.views.monitor import Metrics
from kombu import Connection
from kombu.asynchronous import Hub
from kombu.transport import virtual

import app
import sqs_broker

#: (who has it, its name, what we want of it)
TOUCHED: list[tuple[type | ModuleType, str, str]] = [
    (logging, "_srcfile", "written: no record looks for its place in the code"),
    (virtual.Channel, "_put", "overridden: a message becomes a call of SendMessage"),
    (virtual.Channel, "_lookup", "overridden: a message without a route is an error"),
    (virtual.Channel, "_new_queue", "overridden: no queue is created at run time"),
    (virtual.Channel, "_has_queue", "overridden: queues are known by configuration"),
    (virtual.Channel, "_size", "overridden: a producer may only send, and not ask for the length"),
    (virtual.Channel, "_purge", "overridden: `celery purge`"),
    (virtual.Channel, "_delete", "overridden: no queue is deleted at run time"),
    (virtual.Channel, "_get", "overridden: nothing polls message by message"),
    (virtual.Channel, "_tag_to_queue", "read: the queue of a consumer that is cancelled"),
    (virtual.QoS, "_delivered", "read: the message of a delivery tag, to see what happened to it"),
    (virtual.Transport, "_callbacks", "read: who consumes a queue"),
    (WorkController, "_process_task", "called: one request becomes a job of the pool"),
    (Request, "_announce_revoked", "overridden: a message that is discarded is no success"),
    (Request, "_already_revoked", "read: whether the run was ended because of this message"),
    (Request, "_already_cancelled", "read: the same, if its lease was lost"),
    (Request, "_apply_result", "written: the job that a batch shares, for terminate and cancel"),
    (Celery, "_tasks", "written: a table in which each task has the broker's behaviour"),
    (EventDispatcher, "_publish", "overridden: an event is no work on the loop"),
    (EventDispatcher, "_group_buffer", "added to: the events of tasks that wait for a flush"),
    (Request, "_context", "read: what the hooks of a failure are given, as Celery gives it"),
    (Request, "_message", "read: the message that a note of what happened is put on"),
    (Hub, "_pop_ready", "called: what is due on the loop, to run each by itself"),
    (
        CeleryConsumer,
        "_maximum_prefetch_restored",
        "read: whether Celery counts acks after a restart",
    ),
    (AsynPool, "_pool", "read and written: a process that could not be forked is taken out"),
    (AsynPool, "_create_worker_process", "overridden: what is left of a fork that fails"),
    (AsynPool, "_create_write_handlers", "overridden: a job is written without asking first"),
    (AsynPool, "_quick_put", "replaced: a small job is written at once, in one call"),
    (AsynPool, "_fileno_to_inq", "read: the process of a pipe that a job is written to"),
    (ApplyResult, "_write_to", "written: the process that a job was written to"),
    (ApplyResult, "_scheduled_for", "written: the same, as Celery does before it writes"),
    (AsynPool, "_cache", "read: the job that was just put"),
    (ResultHandler, "_make_process_result", "overridden: one call reads all that is in a pipe"),
    (AsynPool, "_all_inqueues", "read: the pipes of the processes"),
    (AsynPool, "_busy_workers", "read and added to: those whose process has a job"),
    (AsynPool, "_active_writes", "read: those to which a job is being written"),
    (AsynPool, "_repopulate_pool", "overridden: a process that could not start is tried again"),
    (AsynPool, "_process_cleanup_queues", "called: its pipes are free for the next one"),
    (ApplyResult, "_set", "called: a job whose process got a SIGTERM has ended"),
    (Process, "_popen", "read: whether a process was forked"),
    (platforms, "_set_pdeathsig", "replaced: a process asks for a signal without parsing C"),
    (mongoengine.Document, "_get_collection", "called: writes in a transaction"),
    (mongoengine.Document, "_meta", "read: the indexes, to make them once at the start"),
]

#: The same for what a function of theirs writes on an object of another class.
WRITTEN = [
    (
        AsynPool._create_write_handlers,
        "_payload",
        "read and written: a job's length, the job, and its length as a number",
    ),
]

NAMES = {name for _, name, _ in [*TOUCHED, *WRITTEN]}

#: Names of functions of theirs, and of variables in them, that are compared or looked up as text.
BY_TEXT = {
    "worker_Cold": "Celery's handler of a cold shutdown, which ours takes the place of",
    "_launch": "billiard's method that forks: its frame is in the traceback of a fork that fails",
    "parent_r": "a variable of it: an end of the pipe that it has opened",
    "child_w": "the other end",
    "ValidationError": "pydantic's, which the broker does not depend on",
}

#: Attributes that hold such a name.
NAMING = {"__name__", "__qualname__", "co_name", "f_locals"}

#: Public names that we override and no manual promises.
HOOKS: dict[type, str] = {
    CeleryConsumer: "loop_args create_task_handler on_decode_error on_unknown_message "
    "on_unknown_task on_invalid_task update_strategies on_send_event_buffered",
    AsynPool: "register_with_event_loop maintain_pool Worker Process terminate_job "
    "on_job_process_lost",
    PoolWorker: "workloop",
    Process: "terminate terminate_controlled",
    TaskPool: "Pool",
    Request: "on_accepted revoked on_failure on_retry on_timeout send_event maybe_expire info",
    CeleryEvents: "dispatcher_cls",
    EventDispatcher: "send flush",
    CeleryTask: "on_bound retry apply_async Request on_failure __call__ __trace__",
    TaskRegistry: "__setitem__",
    virtual.Channel: "basic_publish basic_qos basic_consume basic_cancel basic_ack basic_reject "
    "drain_events close do_restore body_encoding supports_fanout typeof get_table",
    virtual.QoS: "restore_at_shutdown ack",
    AppLoader: "import_default_modules",
    BrokerView: "get capp render",
    GetQueueLengths: "get_broker",
    Metrics: "get",
    virtual.Transport: "register_with_event_loop drain_events close_connection driver_version "
    "implements",
}


@pytest.mark.parametrize(
    ("owner", "name"),
    [(owner, name) for owner, name, _ in TOUCHED],
    ids=[f"{owner.__name__}.{name}" for owner, name, _ in TOUCHED],
)
def test_a_private_name_is_still_there(owner: type | ModuleType, name: str) -> None:
    there = dir(owner) if isinstance(owner, ModuleType) else private_names_of(owner)
    assert name in there


@pytest.mark.parametrize(("function", "name"), [each[:2] for each in WRITTEN])
def test_a_private_name_is_still_written(function: Any, name: str) -> None:
    assert name in names_of(function.__code__)


def names_of(code: CodeType) -> set[str]:
    """The attributes in a function, and in those within it."""
    within = [names_of(each) for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*within)


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in HOOKS.items() for name in names.split()]
)
def test_a_hook_is_still_there(owner: type, name: str) -> None:
    assert hasattr(owner, name)


def test_every_private_name_has_a_reason() -> None:
    assert all(reason for _, _, reason in [*TOUCHED, *WRITTEN])
    assert all(BY_TEXT.values())


def test_celerys_handler_of_a_cold_shutdown_is_still_called_so() -> None:
    kept = signal.getsignal(signal.SIGQUIT)
    try:
        install_worker_term_hard_handler(None)
        assert getattr(signal.getsignal(signal.SIGQUIT), "__name__", "") == "worker_Cold"
    finally:
        signal.signal(signal.SIGQUIT, kept)


def test_a_fork_of_billiards_still_keeps_its_pipe_in_variables_of_these_names() -> None:
    assert {"parent_r", "child_w"} <= set(Popen._launch.__code__.co_varnames)


# What those that are read must be


@pytest.fixture
def channel() -> Iterator[virtual.Channel]:
    """A virtual channel in this process, with one message delivered."""
    with Connection("memory://") as connection:
        channel = connection.channel()
        channel.queue_declare("jobs")
        message = channel.prepare_message("{}", content_type="application/json")
        channel.basic_publish(message, exchange="", routing_key="jobs")
        channel.basic_consume("jobs", no_ack=False, callback=list, consumer_tag="tag-1")
        yield channel
        # The queues of this transport are those of the whole process.
        channel.qos.restore_at_shutdown = False
        channel.queue_purge("jobs")


def test_a_consumer_tag_leads_to_its_queue(channel: virtual.Channel) -> None:
    assert channel._tag_to_queue == {"tag-1": "jobs"}


def test_a_queue_leads_to_who_consumes_it(channel: virtual.Channel) -> None:
    assert callable(channel.connection._callbacks["jobs"])


def test_a_delivery_tag_leads_to_its_message(channel: virtual.Channel) -> None:
    message = channel.basic_get("jobs")
    assert channel.qos._delivered[message.delivery_tag] is message


def test_a_message_without_a_route_has_an_empty_lookup(channel: virtual.Channel) -> None:
    channel.exchange_declare("somewhere", type="direct")
    # A virtual channel otherwise falls back to the queue `ae.undeliver`, with a warning.
    channel.deadletter_queue = None
    assert not channel._lookup("somewhere", "nowhere")


def test_a_document_has_its_indexes_in_its_meta() -> None:
    from app.models import User

    assert User._meta["collection"] == "users"
    assert [index["fields"] for index in User._meta["indexes"]] == [["stock_id", "user_id"]]


# The list is complete


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def modules() -> tuple[ModuleType, ...]:
    found = [
        module
        for package in (app, sqs_broker)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return tuple(importlib.import_module(module.name) for module in found)


@cache
def tree_of(module: ModuleType) -> ast.Module:
    source = getattr(module, "__file__", None) or ""
    return ast.parse(Path(source).read_text() if source.endswith(".py") else "")


@cache
def defined_in(tree: ast.AST) -> frozenset[str]:
    """Private names that are defined there: functions, variables, and attributes of `self` or
    `cls`. One that is written on anything else is somebody else's."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and getattr(node.value, "id", "") in ("self", "cls")
        ):
            found.add(node.attr)
    return frozenset(filter(private, found))


@cache
def used_in(tree: ast.AST) -> frozenset[str]:
    used = (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return frozenset(filter(private, used))


@cache
def written_in(cls: type) -> frozenset[str]:
    """Private names in the text of the class."""
    for node in ast.walk(tree_of(sys.modules[cls.__module__])):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            return defined_in(node)
    return frozenset()


def private_names_of(*classes: type) -> set[str]:
    """Those of classes, what a metaclass wrote and attributes of instances included."""
    names = {name for cls in classes for name in dir(cls) if private(name)}
    return names.union(*(written_in(base) for cls in classes for base in cls.__mro__))


def classes_of_ours() -> Iterator[tuple[type, list[type], list[type]]]:
    """Each class with those of its bases that are ours, and those that are not."""
    for module in modules():
        for cls in vars(module).values():
            # By its type: to ask a task for its class would read the settings.
            if issubclass(type(cls), type) and cls.__module__ == module.__name__:
                ours = [
                    base
                    for base in cls.__mro__
                    if base.__module__.startswith(("app.", "sqs_broker."))
                ]
                yield cls, ours, [base for base in cls.__mro__ if base not in ours]


def used() -> set[tuple[str, str]]:
    """Private names that a module uses, and neither it nor a base of ours defines."""
    found = {
        (module.__name__, name)
        for module in modules()
        for name in used_in(tree_of(module)) - defined_in(tree_of(module))
    }
    inherited = {
        (cls.__module__, name)
        for cls, ours, _ in classes_of_ours()
        for base in ours
        for name in written_in(base)
    }
    return found - inherited


def overridden() -> set[tuple[type, str]]:
    """Private names of ours that a foreign base has too."""
    return {
        (cls, name)
        for cls, _, foreign in classes_of_ours()
        for name in written_in(cls) & private_names_of(*foreign)
    }


def names_in(found: set[tuple[Any, str]]) -> set[str]:
    return {name for _, name in found}


def looked_up() -> set[str]:
    """Texts that a name of a function, or of a variable in a frame, is compared with."""
    found: set[str] = set()
    for module in modules():
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Compare) and words_in(node.left) & NAMING:
                found |= texts_in(node.comparators)
            elif isinstance(node, ast.For) and words_in(node) & {"f_locals"}:
                found |= texts_in([node.iter])
            elif isinstance(node, ast.Subscript) and words_in(node.value) & {"f_locals"}:
                found |= texts_in([node.slice])
    return found


def words_in(node: ast.AST) -> set[str]:
    """Attributes, and texts that may name one (`getattr`)."""
    attributes = {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return attributes | texts_in([node])


def texts_in(nodes: Sequence[ast.AST]) -> set[str]:
    constants = (
        each for node in nodes for each in ast.walk(node) if isinstance(each, ast.Constant)
    )
    return {each.value for each in constants if isinstance(each.value, str)}


def test_every_name_that_is_looked_up_as_text_is_in_the_list() -> None:
    assert looked_up() == set(BY_TEXT)


@pytest.mark.parametrize(
    "written", ["other._x = 1", "module._x += 1", "self.other._x = 1", "for it._x in (): ..."]
)
def test_what_is_written_on_something_else_is_not_taken_for_ours(written: str) -> None:
    assert "_x" not in defined_in(ast.parse(written))
    assert "_x" in used_in(ast.parse(written))


def test_every_private_name_that_is_used_is_in_the_list() -> None:
    assert names_in(used()) <= NAMES, used()


def test_no_private_name_of_ours_hides_one_of_theirs_by_accident() -> None:
    # A thread class of ours once had a `_delete`, which threading.Thread has too.
    by_accident = {
        (cls.__name__, name)
        for cls, name in overridden()
        if not any(
            isinstance(owner, type) and issubclass(cls, owner) and name == its
            for owner, its, _ in TOUCHED
        )
    }
    assert by_accident == set()


def test_the_list_names_nothing_that_is_no_longer_touched() -> None:
    assert names_in(used() | overridden()) == NAMES
