"""A result is shown as Celery shows it."""

from enum import StrEnum
from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sqs_broker.worker.results import shown_result


class Kind(StrEnum):
    A = "a"


class Odd(str):
    def __repr__(self) -> str:
        return "'odd'"


texts = st.text(max_size=8) | st.text("ab0_ .:'\"\\-é", max_size=90)
results = (
    st.none()
    | st.integers()
    | texts
    | st.dictionaries(texts, texts | st.integers() | st.sampled_from([Kind.A, Odd("x")]))
    | st.dictionaries(texts, st.dictionaries(texts, texts, max_size=2), max_size=2)
    | st.lists(texts, max_size=3)
)


@settings(derandomize=True, database=None, max_examples=300)
@given(result=results, longest=st.sampled_from([1024, None, 20, 0, 300]))
@example(result={"result": "registered", "stock_id": "s1", "user_id": "u 1"}, longest=1024)
@example(result={"b": "1", "a": "2"}, longest=1024)
@example(result={}, longest=1024)
@example(result={"a": Odd("x")}, longest=1024)
@example(result={"a": Kind.A}, longest=1024)
@example(result={f"k{n}": "x" * 30 for n in range(8)}, longest=300)
def test_a_result_is_shown_as_celery_shows_it(result: Any, longest: int | None) -> None:
    try:
        wanted: Any = saferepr(result, longest)
    except Exception as exc:
        with pytest.raises(type(exc)):
            shown_result(result, longest)
    else:
        assert shown_result(result, longest) == wanted
