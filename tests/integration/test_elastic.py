"""Elastic APM's own Celery integration, as it comes from the index."""

import pytest

from tests.integration.test_tracing_libraries import seen_by

pytestmark = pytest.mark.slow


def test_elastic_sees_one_trace_from_the_request_to_the_run_and_one_error() -> None:
    request, error, run = seen_by("elastic", "sent-permanent")
    assert [one["kind"] for one in (request, error, run)] == ["transaction", "error", "transaction"]
    assert (request["name"], request["parent"], run["parent"]) == ("request", None, request["id"])
    assert error["error"] == "KeyError"
    assert (error["parent"], run["outcome"]) == (run["id"], "failure")
    assert {one["trace"] for one in (request, error, run)} == {request["trace"]}


def test_elastic_sees_the_work_inside_the_transaction_of_its_message() -> None:
    request, write, run = seen_by("elastic", "sent")
    assert (write["kind"], write["name"], write["parent"]) == ("span", "write", run["id"])
    assert (run["parent"], run["outcome"]) == (request["id"], "success")


def test_elastic_sees_a_transaction_for_each_message_of_a_shared_job_and_one_error() -> None:
    seen = seen_by("elastic", "shared")
    runs = [one for one in seen if one["kind"] == "transaction"]
    assert sorted(run["outcome"] for run in runs) == ["failure", "success", "success"]
    assert len({run["trace"] for run in runs}) == 3
    assert [one["error"] for one in seen if one["kind"] == "error"] == ["KeyError"]
