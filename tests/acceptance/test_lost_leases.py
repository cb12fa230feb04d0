"""What a real worker does where SQS cannot be reached for long: its leases are lost, its queue has
no address.
"""

import pytest

from tests.faults import proxy
from tests.faults.proxy import SERVER_ERROR, refused
from tests.probe.project import PATIENCE, MakeProject
from tests.services import Queues, wait_until

#: Seconds.
VISIBILITY = 4
LONGER = 8

EXTEND = "ChangeMessageVisibilityBatch"


@pytest.mark.slow
@pytest.mark.parametrize("queues", [{"visibility_timeout": VISIBILITY}], indirect=True)
@pytest.mark.parametrize("cancels", [True, False])
def test_a_task_whose_lease_is_lost_is_cancelled_where_wanted_and_its_redelivery_runs(
    make_project: MakeProject, queues: Queues, cancels: bool
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        project = make_project(
            transport={
                "endpoint_url": url,
                "visibility_timeout": VISIBILITY,
                "cancel_on_lease_loss": cancels,
            }
        )
        worker = project.start()
        faults.fail(EXTEND, SERVER_ERROR)
        id_ = project.send("work", LONGER)
        said = "lease of a message was lost"
        wait_until(lambda: said in project.worker_log(), PATIENCE, "the loss of the lease")
        faults.heal(EXTEND)
        wait_until(lambda: len(project.events(id_, "start")) == 2, PATIENCE, "the redelivery")
        wait_until(lambda: len(project.events(id_, "end")) == 2 - cancels, PATIENCE, "the ends")
        project.wait_for_empty_queue()

        first, second = project.events(id_, "start")
        assert (first["redelivered"], second["redelivered"]) == (False, True)
        # Cancelled and not revoked: a revoke would have discarded the redelivery.
        assert [end["pid"] for end in project.events(id_, "end")] == (
            [second["pid"]] if cancels else [first["pid"], second["pid"]]
        )
        assert project.notes() == {}
        assert project.stop(worker) == 0


@pytest.mark.slow
@pytest.mark.parametrize("queues", [{"visibility_timeout": VISIBILITY}], indirect=True)
def test_a_job_in_which_one_lease_is_lost_is_cancelled_where_wanted_and_no_message_pays_for_it(
    make_project: MakeProject, queues: Queues
) -> None:
    with proxy.running(queues.endpoint_url) as (faults, url):
        project = make_project(
            transport={
                "endpoint_url": url,
                "visibility_timeout": VISIBILITY,
                "cancel_on_lease_loss": True,
            },
            quiet=True,
        )
        # After one message the worker knows how short they are.
        worker = project.start("-c", "1")
        project.wait_for_end(project.send("together", "fine"))
        faults.fail(EXTEND, refused(0, of=10), last=1)
        faults.hold("ReceiveMessage")
        wait_until(lambda: faults.is_holding("ReceiveMessage"), PATIENCE, "a call that waits")
        ids = [project.send("together", "slow") for _ in range(10)]
        faults.let_go("ReceiveMessage")
        project.wait_for_empty_queue()

        # No message is lost or revoked with it: each runs once more, here alone, because no store
        # says how its first run has ended.
        for id_ in ids:
            assert [run["size"] for run in project.events(id_, "together")] == [10]
            assert len(project.events(id_, "end")) == 1
        assert project.worker_log().count("lease of a message was lost") == 1
        assert "revoked" not in project.worker_log()
        assert project.notes() == {}
        assert project.stop(worker) == 0


def test_a_worker_whose_endpoint_has_no_address_lives_and_says_so_once(
    make_project: MakeProject,
) -> None:
    # A name that no resolver ever knows: https://www.rfc-editor.org/rfc/rfc2606
    project = make_project(
        transport={"endpoint_url": "http://sqs.invalid:9324", "receive_pause_max": 0.2}
    )
    worker = project.start()
    said = "fails (EndpointConnectionError); trying again until it works."
    wait_until(lambda: said in project.worker_log(), PATIENCE, "the failure")

    assert project.stop(worker) == 0
    assert project.worker_log().count(said) == 1
