"""The time limits of one message: a lower one is its own, and none ends its process at once."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqs_broker.rules.time_limits import LEAST, of_message

#: Hard and soft, as the task has them.
TASK = (30.0, 25.0)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (None, (None, None)),
        ([None, None], (None, None)),
        # What a producer with the same settings, or with longer ones, writes into each message.
        ([30, 25], (None, None)),
        ([60, 50], (None, None)),
        ([1e9, 1e9], (None, None)),
        ([30, None], (None, None)),
        # What a call asked for.
        ([10, 5], (10, 5)),
        ([10, None], (10, None)),
        ([None, 5], (None, 5)),
        ([30, 5.5], (None, 5.5)),
        ([10, 25], (10, None)),
        # Nonsense.
        ([0, 0], (None, None)),
        ([-1, -5], (None, None)),
        ([float("nan"), float("inf")], (None, None)),
        ([1e-9, 1e-9], (LEAST, None)),
        ([None, 1e-9], (None, LEAST)),
        ([10, 0.1], (10, LEAST)),
        ([5, 5], (5, None)),
        ([5, 10], (5, None)),
    ],
    ids=repr,
)
def test_only_a_lower_limit_is_the_messages_own(asked: Any, kept: Any) -> None:
    assert of_message(asked, TASK) == kept


@pytest.mark.parametrize(
    ("asked", "of_task", "kept"),
    [
        ([40, 35], (None, None), (40, 35)),
        ([40, 35], (0, 0), (40, 35)),
        ([35, 40], (None, None), (35, None)),
        ([None, 40], (30, None), (None, None)),
        ([0.2, 0.1], (0.5, 0.4), (None, None)),
    ],
)
def test_a_task_may_have_no_limit_or_a_very_short_one(asked: Any, of_task: Any, kept: Any) -> None:
    assert of_message(asked, of_task) == kept


limits = st.none() | st.floats() | st.integers(-10, 100)


@settings(derandomize=True, database=None)
@given(hard=limits, soft=limits, own=st.tuples(limits, limits))
def test_no_limit_is_above_the_tasks_or_ends_a_process_before_its_task_has_begun(
    hard: Any, soft: Any, own: Any
) -> None:
    kept_hard, kept_soft = of_message([hard, soft], own)
    for kept, asked, its in ((kept_hard, hard, own[0]), (kept_soft, soft, own[1])):
        assert kept is None or kept >= LEAST
        assert kept is None or kept in (asked, LEAST)
        assert kept is None or not its or not kept >= its
    assert kept_soft is None or kept_hard is None or kept_soft < kept_hard
