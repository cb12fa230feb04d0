"""Regular expressions of operators: none of them can take long."""

import time

import pytest

from sqs_broker.rules.bounded_pattern import LONGEST_TEXT, Unbounded, compiled, search


@pytest.mark.parametrize(
    "pattern",
    ["timeout.*mongo", "^(E11000|Write).{0,80}dup", "x.{0,40}y.{0,40}z", "(ab)*c", "[a-z]+[0-9]?"],
)
def test_a_pattern_of_few_ways_is_searched_and_is_quick(pattern: str) -> None:
    found = compiled(pattern)
    began_at = time.process_time()
    for text in ("a" * LONGEST_TEXT, "x" * 700 + "y" * 800, "timeout" * 300):
        search(found, text)
    assert time.process_time() - began_at < 5


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|ab)*c", "(a*)*", "a?" * 30, ".*.*", "(.{1,9}){1,9}b", "(a?){30}"]
)
def test_a_pattern_of_many_ways_is_refused(pattern: str) -> None:
    with pytest.raises(Unbounded, match="too long"):
        compiled(pattern)


@pytest.mark.parametrize("pattern", ["(", "[", "a{2,1}", "(?P<x", "x" * 201, "(?=a)b", r"(a)\1"])
def test_what_is_no_pattern_or_not_supported_is_refused(pattern: str) -> None:
    with pytest.raises(Unbounded):
        compiled(pattern)


def test_case_is_ignored_and_only_the_beginning_of_a_text_is_searched() -> None:
    assert search(compiled("TIMEOUT"), "a timeout")
    assert not search(compiled("b"), "a" * LONGEST_TEXT + "b")
