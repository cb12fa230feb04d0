"""What happens to MongoDB: one thing at a time, each undone again."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from tests.chaos import plan
from tests.chaos.plan import Strike
from tests.chaos.sides import Side
from tests.chaos.stage import Stage
from tests.deployments.deployment import Deployment
from tests.services import wait_until

#: Seconds for a write of the fleet to come along.
WRITE = 30

#: The fail point that keeps a secondary from fetching what the primary has.
NO_FETCH = "stopReplProducer"


@dataclass
class Outages:
    """Those of one run. Used by one thread at a time; `close` ends it."""

    stage: Stage
    side: Side

    def carry_out(self, strike: Strike) -> bool:
        """Do it for as long as the strike says, and undo it; whether it had its effect."""
        how = {
            plan.STOP_MONGO: self._stop,
            plan.RESTART_MONGO: self._restart,
            plan.SWALLOW_MONGO: self._swallow,
            plan.FAILOVER: self._fail_over,
            plan.STEP_DOWN: self._step_down,
            plan.STANDALONE: self._make_one_standalone,
            plan.STANDALONES: self._make_all_standalone,
            plan.MOVE: self._move,
            plan.BLOCK: self._block_writes,
            plan.REVOKE: self._revoke_rights,
            plan.NO_MAJORITY: self._stop_secondaries,
            plan.ROLL_BACK: self._roll_back,
        }
        self._set.wait_until_whole()
        try:
            return how[strike.kind](strike.seconds)
        except Exception:
            self._undo()
            raise

    def _undo(self) -> None:
        """Undo what was left half-way."""
        for proxy in self.stage.mongo_proxies:
            proxy.heal()
        self._set.repair()
        for database in self.stage.databases:
            self._set.grant(database)

    def close(self) -> None:
        """Close what it looks with."""
        self._client.close()

    # All members ----------------------------------------------------------------------------------

    def _stop(self, seconds: float) -> bool:
        for member in self._all:
            self._set.freeze(member)
        time.sleep(seconds)
        for member in self._all:
            self._set.thaw(member)
        return True

    def _restart(self, seconds: float) -> bool:
        self._each(self._set.stop, self._all)
        time.sleep(seconds)
        self._each(self._set.start, self._all)
        return True

    def _swallow(self, seconds: float) -> bool:
        for proxy in self.stage.mongo_proxies:
            proxy.swallow()
        time.sleep(seconds)
        for proxy in self.stage.mongo_proxies:
            proxy.heal()
        return True

    def _make_all_standalone(self, seconds: float) -> bool:
        return self._make_standalone(self._all, seconds)

    # The primary ----------------------------------------------------------------------------------

    def _fail_over(self, seconds: float) -> bool:
        if not self._is_written_to():
            return False
        killed = self._set.primary
        self._set.kill(killed)
        elected = self._set.wait_for_primary()
        time.sleep(seconds)
        self._set.start(killed)
        return elected != killed

    def _step_down(self, seconds: float) -> bool:
        if not self._is_written_to():
            return False
        before = self._set.primary
        self._set.step_down()
        return self._set.wait_for_primary() != before

    def _make_one_standalone(self, seconds: float) -> bool:
        return self._make_standalone([self._set.primary], seconds)

    def _make_standalone(self, members: list[int], seconds: float) -> bool:
        self._each(self._set.stop, members)
        self._each(partial(self._set.start, as_standalone=True), members)
        time.sleep(seconds)
        self._each(self._set.stop, members)
        self._each(self._set.start, members)
        return True

    def _move(self, seconds: float) -> bool:
        moved = self._set.primary
        before = self._set.members[moved].front
        self._set.move(moved)
        return self._set.members[moved].front != before

    # Writes ---------------------------------------------------------------------------------------

    def _block_writes(self, seconds: float) -> bool:
        self._set.block_writes()
        is_refused = self._is_write_refused()
        time.sleep(seconds)
        self._set.block_writes(False)
        return is_refused and not self._is_write_refused()

    def _revoke_rights(self, seconds: float) -> bool:
        for database in self.stage.databases:
            self._set.revoke(database)
        is_refused = self._is_write_refused()
        time.sleep(seconds)
        for database in self.stage.databases:
            self._set.grant(database)
        return is_refused and not self._is_write_refused()

    def _stop_secondaries(self, seconds: float) -> bool:
        secondaries = self._set.secondaries
        for member in secondaries:
            self._set.freeze(member)
        is_refused = self._is_write_refused()
        time.sleep(seconds)
        for member in secondaries:
            self._set.thaw(member)
        return is_refused and len(secondaries) == len(self._all) - 1

    def _roll_back(self, seconds: float) -> bool:
        """Let the primary take writes that no other member gets, and kill it: it has to undo them
        when it comes back."""
        primary, secondaries = self._set.primary, self._set.secondaries
        for member in secondaries:
            self._set_fetching(member, False)
        mark = {"_id": time.monotonic()}
        marks = self._set.client(primary)[self.stage.database_name]["marks"]
        time.sleep(seconds)
        marks.with_options(write_concern=WriteConcern(w=1)).insert_one(mark)
        self._set.kill(primary)
        for member in secondaries:
            self._set_fetching(member, True)
        self._set.wait_for_primary()
        self._set.start(primary)
        self._set.wait_until_whole()
        return self.stage.database["marks"].find_one(mark) is None

    def _set_fetching(self, member: int, fetches: bool) -> None:
        mode = "off" if fetches else "alwaysOn"
        self._set.client(member).admin.command("configureFailPoint", NO_FETCH, mode=mode)

    def _each(self, act: Callable[[int], None], members: list[int]) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(act, members))

    # Looks ----------------------------------------------------------------------------------------

    @property
    def _set(self) -> Deployment:
        return self.stage.mongo

    @property
    def _all(self) -> list[int]:
        return [member.number for member in self._set.members]

    @cached_property
    def _client(self) -> MongoClient[dict[str, object]]:
        return MongoClient(self.stage.mongo_uri(w="majority"))

    def _is_write_refused(self) -> bool:
        """Whether the fleet's user cannot write for a majority."""
        trials: Collection[dict[str, object]] = self._client.get_default_database()["trials"]
        try:
            trials.insert_one({})
        except PyMongoError:
            return True
        return False

    def _is_written_to(self) -> bool:
        """Waits until the fleet writes users, and whether it does now."""
        database = f"{self.stage.database_name}.$cmd"
        runs = {"ns": database, f"command.{self.side.writes[0]}": "users"}
        looks = [{"$currentOp": {"allUsers": True}}, {"$match": runs}]
        admin = self._set.client(self._set.primary).admin
        with suppress(TimeoutError):
            return bool(wait_until(lambda: list(admin.aggregate(looks)), WRITE, "a write"))
        return False
