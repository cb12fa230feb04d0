"""What a message may ask of Celery besides its own task: built-in tasks, and how many callbacks."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group, signature
from celery.canvas import Signature, chunks, xmap, xstarmap
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils.json import dumps

from sqs_broker.errors import ConfigurationError
from sqs_broker.rules.canvas import BUILT_IN, Canvas
from sqs_broker.rules.outcomes import Refused, UnknownTask

TASKS = frozenset({"job", "other", *BUILT_IN})
CLOSED = Canvas(built_in_tasks=(), most_callbacks=0)


def job(**options: Any) -> Signature:
    return signature("job", args=(1,), options=options)


def on_the_wire(content: Any) -> Any:
    """As a worker reads it."""
    return json.loads(dumps(content))


def refused(
    canvas: Canvas = Canvas(),  # noqa: B008  # It cannot change.
    task: str = "job",
    args: Any = (),
    kwargs: Any = None,
    **embed: Any,
) -> Refused | UnknownTask | None:
    payload = on_the_wire([args, kwargs or {}, embed])
    return canvas.refuses(task, payload, TASKS)


def reason(found: Refused | UnknownTask | None) -> str:
    assert isinstance(found, Refused)
    return found.reason


#: Each thing that Celery's canvas puts into a message.
ANY_CANVAS: dict[str, Callable[[], Any]] = {
    "a link": job,
    "a link with a link": lambda: job(link=[job()]),
    "a chain": lambda: chain(job(), job()),
    "a group": lambda: group(job(), job()),
    "a chord": lambda: chord([job(), job()], job()),
    "a group of chains": lambda: group(chain(job(), job()), job()),
    "a chord of chords": lambda: chord([chord([job()], job()), job()], chain(job(), job())),
    "a map": lambda: xmap(signature("job"), [1, 2]),
    "a starmap": lambda: xstarmap(signature("job"), [(1, 2)]),
    "chunks": lambda: chunks(signature("job"), [(1,), (2,), (3,)], 2),
}


@pytest.mark.parametrize("what", ANY_CANVAS)
@pytest.mark.parametrize("place", ["callbacks", "errbacks", "chain", "chord"])
def test_by_default_all_of_celerys_canvas_may_follow_a_task(what: str, place: str) -> None:
    made = ANY_CANVAS[what]()
    assert refused(**{place: made if place == "chord" else [made]}) is None


@pytest.mark.parametrize("what", ANY_CANVAS)
@pytest.mark.parametrize("place", ["callbacks", "errbacks", "chain", "chord"])
def test_where_no_callback_is_allowed_none_runs(what: str, place: str) -> None:
    made = ANY_CANVAS[what]()
    assert isinstance(refused(CLOSED, **{place: made if place == "chord" else [made]}), Refused)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_task_runs_only_if_the_option_names_it(name: str) -> None:
    assert refused(Canvas(built_in_tasks=(name,)), name) is None
    others = tuple(each for each in BUILT_IN if each != name)
    assert name in reason(refused(Canvas(built_in_tasks=others), name))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_callback_calls_a_built_in_task_only_if_the_option_names_it(name: str) -> None:
    found = refused(Canvas(built_in_tasks=()), callbacks=[signature(name)])
    assert name in reason(found)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda deep: {"callbacks": [deep]},
        lambda deep: {"errbacks": [deep]},
        lambda deep: {"chain": [deep]},
        lambda deep: {"chord": deep},
        lambda deep: {"callbacks": [job(link=[deep])]},
        lambda deep: {"callbacks": [job(link=deep)]},
        lambda deep: {"callbacks": [job(link_error=[deep])]},
        lambda deep: {"callbacks": [job(chain=[deep])]},
        lambda deep: {"callbacks": [job(chord=deep)]},
        lambda deep: {"callbacks": [chain(job(), deep)]},
        lambda deep: {"callbacks": [group(job(), chain(job(), deep))]},
        lambda deep: {"callbacks": [chord([deep], job())]},
        lambda deep: {"callbacks": [chord([job()], deep)]},
        lambda deep: {"task": "celery.group", "kwargs": {"tasks": [deep]}},
        lambda deep: {"task": "celery.group", "args": [[deep], [], "g", []]},
        lambda deep: {"task": "celery.chord", "kwargs": {"header": {"tasks": [deep]}}},
        lambda deep: {"task": "celery.chord", "kwargs": {"header": [job()], "body": deep}},
        lambda deep: {"task": "celery.chord_unlock", "args": ["g", deep]},
        lambda deep: {"task": "celery.map", "kwargs": {"task": deep, "it": [1]}},
        lambda deep: {"task": "celery.starmap", "args": [deep, [[1]]]},
        lambda deep: {"task": "celery.chunks", "kwargs": {"task": deep, "it": [1], "n": 1}},
    ],
)
def test_a_callback_at_any_depth_calls_only_a_task_that_is_registered(hidden: Any) -> None:
    assert refused(**hidden(signature("other"))) is None
    assert refused(**hidden(signature("nobody"))) == UnknownTask("nobody")
    assert refused(Canvas(callback_tasks=["nobody"]), **hidden(signature("nobody"))) is None
    assert isinstance(refused(CLOSED, **hidden(signature("celery.backend_cleanup"))), Refused)


def test_if_no_callbacks_are_allowed_it_is_no_matter_whether_their_task_is_known() -> None:
    none = Canvas(most_callbacks=0)
    known, unknown = (refused(none, link=[signature(name)]) for name in ("other", "nobody"))
    assert reason(unknown) == reason(known)
    assert refused(none, task="celery.nobody", link=[job()]) == UnknownTask("celery.nobody")


def test_arguments_are_data_even_if_they_look_like_a_signature() -> None:
    data = {"task": "nobody", "args": [], "kwargs": {}, "options": {}}
    assert refused(CLOSED, args=[data], kwargs={"task": data}) is None
    one = Canvas(most_callbacks=1)
    assert refused(one, callbacks=[signature("job", args=(data,), kwargs={"it": data})]) is None
    assert refused(callbacks=[xmap(signature("job"), [data])]) is None


@pytest.mark.parametrize(
    ("embed", "calls"),
    [
        ({"callbacks": [job(), job()]}, 2),
        ({"callbacks": [job(link=[job(), job(link_error=[job()])])]}, 4),
        # A group of three; its name counts as one.
        ({"callbacks": [group(job(), job(), job())]}, 4),
        # Celery copies the links of a group to each of its tasks.
        ({"callbacks": [group([job()] * 10, link_error=[job()] * 9)]}, 110),
        ({"callbacks": [chunks(signature("job"), [(1,)] * 100, 1)]}, 102),
        ({"callbacks": [chunks(signature("job"), [(1,)] * 100, 50)]}, 4),
        ({"task": "celery.chunks", "kwargs": {"task": job(), "it": "a" * 100, "n": 1}}, 101),
        ({"task": "celery.chunks", "kwargs": {"task": job(), "it": "a" * 100, "n": 0}}, 101),
        ({"task": "celery.chunks", "args": [job(), "a" * 100, 1]}, 101),
        ({"task": "celery.group", "kwargs": {"tasks": [job()] * 7}}, 7),
        ({"task": "celery.group", "kwargs": {"tasks": [job()] * 7}, "callbacks": [job()]}, 15),
    ],
)
def test_the_calls_of_the_whole_tree_are_counted(embed: Any, calls: int) -> None:
    assert refused(Canvas(most_callbacks=calls), **embed) is None
    found = refused(Canvas(most_callbacks=calls - 1), **embed)
    assert f"more than {calls - 1} calls (most_callbacks)" in reason(found)


def test_links_of_groups_in_groups_do_not_multiply_beyond_the_limit() -> None:
    tree = job()
    for _ in range(12):
        tree = group([tree, job()], link_error=[job(), job()])
    assert len(dumps(tree)) < 20_000
    assert "(most_callbacks)" in reason(refused(callbacks=[tree]))


def test_the_size_of_all_callbacks_is_bounded() -> None:
    big = [signature("job", args=("x" * 600,)), signature("job", args=("y" * 600,))]
    assert refused(Canvas(most_callback_bytes=2_000), callbacks=big) is None
    found = refused(Canvas(most_callback_bytes=1_000), callbacks=big)
    assert "1000 bytes (most_callback_bytes)" in reason(found)
    group_of = {"tasks": big}
    found = refused(Canvas(most_callback_bytes=1_000), "celery.group", kwargs=group_of)
    assert "(most_callback_bytes)" in reason(found)
    # The task's own arguments are no callbacks.
    assert refused(Canvas(most_callback_bytes=1_000), args=["x" * 5_000], chain=[job()]) is None


@pytest.mark.parametrize(
    "forged",
    [
        # Celery reads a signature by its type, whatever its name is.
        {"task": "job", "subtask_type": "group", "kwargs": {"tasks": [signature("nobody")]}},
        {"task": "job", "subtask_type": "chord", "kwargs": {"header": [], "body": None}},
        {"task": "celery.chain", "subtask_type": "group", "kwargs": {"tasks": []}},
        {"task": "job", "subtask_type": "of nobody"},
        {"task": "job", "subtask_type": ["group"]},
        {"subtask_type": "group", "kwargs": {"tasks": [signature("nobody")]}},
        {"task": ["job"]},
        {"task": None},
        {"task": "job", "options": [1]},
        {"task": "job", "args": {"a": 1}},
        {"task": "job", "kwargs": [1]},
        "celery.chunks",
        7,
    ],
)
@pytest.mark.parametrize(
    "around",
    [lambda it: {"callbacks": [job(link=[it])]}, lambda it: {"chord": it}],
    ids=["link", "chord"],
)
def test_what_is_no_signature_of_celery_is_refused(forged: Any, around: Any) -> None:
    assert isinstance(refused(**around(forged)), Refused)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({"built_in_tasks": "celery.map"}, "built_in_tasks"),
        ({"built_in_tasks": ["mine.job"]}, "mine.job"),
        ({"built_in_tasks": [7]}, "built_in_tasks"),
        ({"callback_tasks": "job"}, "callback_tasks"),
        ({"most_callbacks": -1}, "most_callbacks"),
        ({"most_callbacks": "7"}, "most_callbacks"),
        ({"most_callbacks": True}, "most_callbacks"),
        ({"most_callback_bytes": 1.5}, "most_callback_bytes"),
    ],
)
def test_a_wrong_option_is_named(given_: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Canvas.read(given_)


def test_an_option_arrives_under_its_name() -> None:
    options = {"built_in_tasks": ["celery.map"], "most_callbacks": 7, "region": "eu-central-1"}
    assert Canvas.read(options) == Canvas(built_in_tasks=["celery.map"], most_callbacks=7)


# Any tree

leaves = st.sampled_from([job(), signature("other"), signature("nobody"), {"task": 7}, "x", None])
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda tasks: group(tasks) if tasks else "x"),
        st.builds(
            lambda name, type_, key, many, link: {
                "task": name,
                "subtask_type": type_,
                "args": [],
                "kwargs": {key: many},
                "options": {"link": link},
            },
            st.sampled_from([*BUILT_IN, "job"]),
            st.sampled_from([None, "group", "chord", "chain", "chunks", "xmap"]),
            st.sampled_from(["tasks", "header", "body", "task", "it"]),
            st.lists(inner, max_size=3),
            inner,
        ),
    ),
    max_leaves=12,
)


def names_in(content: Any) -> set[Any]:
    if isinstance(content, dict):
        own = {content["task"]} if isinstance(content.get("task"), str) else set()
        return own.union(*map(names_in, content.values()))
    if isinstance(content, list):
        return set().union(*map(names_in, content))
    return set()


@settings(derandomize=True, database=None, max_examples=500)
@given(tree=trees, task=st.sampled_from(["job", *BUILT_IN]))
def test_where_no_canvas_is_allowed_no_message_with_a_callback_may_run(
    tree: Any, task: str
) -> None:
    embed = on_the_wire({"callbacks": [tree]})
    assert CLOSED.refuses(task, [[], {}, embed], TASKS) is not None


@settings(derandomize=True, database=None, max_examples=500)
@given(tree=trees)
def test_a_tree_that_may_run_names_only_tasks_that_are_registered(tree: Any) -> None:
    embed = on_the_wire({"callbacks": [tree]})
    if Canvas().refuses("job", [[], {}, embed], TASKS) is None:
        assert "nobody" not in names_in(_without_data(embed))


def _without_data(content: Any) -> Any:
    """Without the arguments that are data: those of tasks that call no task, and the items that
    maps and chunks pass to theirs."""
    if isinstance(content, list):
        return [_without_data(each) for each in content]
    if not isinstance(content, dict):
        return content
    task = content.get("task")
    left = dict(content)
    if task in ("job", "other", "celery.accumulate", "celery.backend_cleanup"):
        left.pop("kwargs", None)
    elif task in ("celery.chunks", "celery.map", "celery.starmap"):
        left["kwargs"] = {k: v for k, v in content["kwargs"].items() if k != "it"}
    return {key: _without_data(value) for key, value in left.items()}
