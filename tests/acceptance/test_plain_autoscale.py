"""A pool that is scaled up for jobs of plain messages, and down while they run."""

from pathlib import Path

import pytest
from pymongo import MongoClient

from tests.acceptance.lane import NAME, PATIENCE, TEN, lanes
from tests.acceptance.worker import Place

pytestmark = pytest.mark.slow

#: Celery leaves a process idle for 30 s before it ends it.
QUICK = {"AUTOSCALE_KEEPALIVE": "1"}


def test_a_pool_that_is_scaled_down_while_jobs_run_finishes_them(
    own: Place, mongo_client: MongoClient, tmp_path: Path
) -> None:
    with lanes(own, mongo_client, tmp_path / "one", "--autoscale", "3,1", **QUICK) as lane:
        worker = lane.service.worker
        with lane.slow_inserts(1_200):
            ids = lane.send("scaled", 4 * TEN)
            lane.wait_for(lambda: len(worker.pool_pids()) == 3, "three processes")
            lane.wait_for_a_job("scaled")
            ((answer,),) = [
                each.values()
                for each in lane.client.control.broadcast(
                    "autoscale",
                    arguments={"max": 1, "min": 1},
                    reply=True,
                    destination=[NAME],
                    timeout=PATIENCE,
                )
            ]
        assert "max=1" in answer["ok"]
        lane.assert_each_is_done_once(ids)
        assert lane.deliveries(ids) == dict.fromkeys(ids, 1)
        lane.wait_for(lambda: len(worker.pool_pids()) == 1, "one process")
        assert worker.stop() == 0
