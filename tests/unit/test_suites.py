"""`make suites`: what it says of the tests of Celery and kombu, and its status."""

from pathlib import Path

import pytest

from tests.suites.results import Expected, Results

REPORT = """<testsuites><testsuite>
<testcase classname="t.integration.test_canvas.test_chord" name="test_a[1]"/>
<testcase classname="t.integration.test_canvas.test_chord" name="test_b"><failure/></testcase>
<testcase classname="t.integration.test_tasks" name="test_c"><error/></testcase>
<testcase classname="t.integration.test_tasks" name="test_c"/>
<testcase classname="t.integration.test_tasks" name="test_d"><skipped/></testcase>
</testsuite></testsuites>"""

A, B, C = "canvas::test_chord::test_a[1]", "canvas::test_chord::test_b", "tasks::test_c"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """One test passed, two failed, one was skipped."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    made = Results()
    made.read(report)
    return made


def said(results: Results, expected: Expected, *, is_whole: bool = True) -> list[str]:
    """The lines after the first one."""
    return list(results.lines(expected, is_whole=is_whole))[1:]


def test_a_test_whose_teardown_failed_has_failed(results: Results) -> None:
    assert (results.passed, results.failed, results.skipped) == ({A}, {B, C}, {"tasks::test_d"})


def test_a_run_in_which_the_listed_tests_fail_and_no_others_is_as_expected(
    results: Results,
) -> None:
    expected = Expected(frozenset({B, C}))
    assert results.is_as_expected(expected, is_whole=True)
    assert list(results.lines(expected, is_whole=True)) == [
        "1 passed, 2 failed, 1 skipped; 2 of the 2 failures that are expected."
    ]


def test_a_test_that_failed_and_is_not_listed_is_named(results: Results) -> None:
    expected = Expected(frozenset({B}))
    assert not results.is_as_expected(expected, is_whole=False)
    assert said(results, expected) == [f"not expected: {C}"]


def test_a_test_that_passed_when_it_was_run_again_is_named_and_is_no_fault(
    results: Results,
) -> None:
    expected = Expected(frozenset({B}))
    results.passed_again = {C}
    assert results.is_as_expected(expected, is_whole=True)
    assert said(results, expected) == [f"passed when run again by itself: {C}"]


def test_a_listed_test_that_passes_or_is_gone_is_named_if_all_tests_ran(results: Results) -> None:
    expected = Expected(frozenset({A, B, C, "tasks::gone"}))
    assert not results.is_as_expected(expected, is_whole=True)
    assert said(results, expected) == [
        f"expected to fail, but passed: {A}",
        "expected to fail, but not run: tasks::gone",
    ]
    assert results.is_as_expected(expected, is_whole=False)


def test_a_listed_test_that_may_pass_passes(results: Results) -> None:
    expected = Expected(frozenset({A, B, C}), may_pass=frozenset({A}))
    assert results.is_as_expected(expected, is_whole=True)


def test_kombu_tests_that_are_not_as_listed_are_named(results: Results) -> None:
    expected = Expected(frozenset({B, C}))
    results.not_as_listed = ["not in kombu_sqs.toml: SQS::test_new"]
    assert not results.is_as_expected(expected, is_whole=True)
    assert said(results, expected) == results.not_as_listed


def test_each_listed_failure_is_listed_once() -> None:
    expected = Expected.listed()
    assert expected.may_pass < expected.failures
    text = Path(__file__).parents[1].joinpath("suites", "expected.toml").read_text()
    assert [name for name in expected.failures if text.count(f'"{name}"') != 1] == []
