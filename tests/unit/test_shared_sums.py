"""Sums that forked processes add to are whole in the process that forked them."""

import os
from collections.abc import Callable

import pytest

from sqs_broker.machine.shared_sums import SharedSums

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_a_fork(do: Callable[[], None]) -> None:
    """Do something in a forked process, and wait for its end."""
    if (pid := os.fork()) == 0:
        try:
            do()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def sums() -> SharedSums:
    return SharedSums(("jobs", "mails"), rows=3)


def adds(sums: SharedSums, row: int, name: str, number: int) -> Callable[[], None]:
    def do() -> None:
        sums.take(row)
        sums.add(name, number)

    return do


def test_each_name_has_what_all_processes_added(sums: SharedSums) -> None:
    in_a_fork(adds(sums, 0, "jobs", 2))
    in_a_fork(adds(sums, 2, "jobs", 3))
    in_a_fork(adds(sums, 1, "mails", 7))
    assert sums.totals() == {"jobs": 5, "mails": 7}


def test_the_next_process_of_a_row_goes_on_with_its_sums(sums: SharedSums) -> None:
    in_a_fork(adds(sums, 0, "jobs", 2))
    in_a_fork(adds(sums, 0, "jobs", 3))
    assert sums.totals() == {"jobs": 5, "mails": 0}


def test_a_process_without_a_row_adds_nothing(sums: SharedSums) -> None:
    sums.add("jobs", 1)
    in_a_fork(adds(sums, 3, "jobs", 1))
    in_a_fork(adds(sums, 0, "others", 1))
    # One that a task has forked shares the row of its parent.
    in_a_fork(lambda: (sums.take(0), in_a_fork(lambda: sums.add("jobs", 1)))[0])
    assert sums.totals() == {"jobs": 0, "mails": 0}
