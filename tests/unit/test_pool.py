"""Pool: the policy is fed with what happened and asked what to do; nothing is forked here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.pool import KILL_AGAIN_S, Action, Kill, Pool, PoolPolicy, Spawn, State, Term, Wait


@dataclass
class Process:
    """What stands for a forked worker."""

    pid: int
    settled: int = 0
    is_termed: bool = False
    killed_s: list[float] = field(default_factory=list)


@dataclass
class World:
    """A pool and its processes: performs the actions and remembers them."""

    pool: Pool
    now_s: float = 1000.0
    processes: dict[int, Process] = field(default_factory=dict)
    wait_s: float | None = None
    _pid: int = 100

    def plan(self, *, after_s: float = 0.0) -> list[Action]:
        """What is to be done, without the Wait; performed."""
        self.now_s += after_s
        actions = self.pool.plan(self.now_s)
        waits = [action for action in actions if isinstance(action, Wait)]
        assert actions[len(actions) - len(waits) :] == waits
        assert len(waits) <= 1
        assert all(self.now_s < wait.until_s < math.inf for wait in waits)
        self.wait_s = waits[0].until_s if waits else None
        for action in actions:
            self._perform(action)
        return [action for action in actions if not isinstance(action, Wait)]

    def _perform(self, action: Action) -> None:
        match action:
            case Spawn(index):
                assert index not in self.processes, "two processes of one index"
                self._pid += 1
                self.processes[index] = Process(self._pid)
                self.pool.spawned(index, self._pid, self.now_s)
            case Term(index):
                assert not self.processes[index].is_termed, "Term twice"
                self.processes[index].is_termed = True
            case Kill(index, _):
                kills = self.processes[index].killed_s
                assert not kills or self.now_s - kills[-1] >= KILL_AGAIN_S, "Kill too soon"
                kills.append(self.now_s)

    def ready(self, *indexes: int) -> None:
        for index in indexes or tuple(self.processes):
            self.pool.is_ready(index, self.now_s)

    def settle(self, index: int) -> None:
        self.processes[index].settled += 1
        settled = self.processes[index].settled
        self.pool.facts(index, settled, settled, has_message=False, message_age_s=0)

    def holds(self, index: int, age_s: float) -> None:
        settled = self.processes[index].settled
        self.pool.facts(index, settled + 1, settled, has_message=True, message_age_s=age_s)

    def end(self, index: int, status: str = "signal", *, claims: int | None = None, had_message: bool = False) -> None:
        settled = self.processes.pop(index).settled
        self.pool.exited(
            index,
            self.now_s,
            status=status,
            claims=settled + had_message if claims is None else claims,
            settled=settled,
            had_message=had_message,
        )


def world(size: int = 4, *, is_running: bool = True, **policy: float) -> World:
    made = World(Pool(PoolPolicy(size, **policy)))
    made.plan()
    if is_running:
        made.ready()
    return made


# ---- spawning and dying


def test_a_new_pool_spawns_each_index_once():
    made = World(Pool(PoolPolicy(3)))
    assert made.plan() == [Spawn(0), Spawn(1), Spawn(2)]
    assert made.plan() == []
    assert made.wait_s is None
    assert made.pool.state(0) is State.STARTING
    made.ready(0)
    made.ready(0)
    assert made.pool.state(0) is State.RUNNING
    assert made.pool.pid(0) == made.processes[0].pid


def test_a_worker_that_died_with_a_message_in_hand_is_replaced_at_once():
    made = world()
    made.end(2, had_message=True)
    assert made.pool.state(2) is State.BACKOFF
    assert made.plan() == [Spawn(2)]


def test_a_worker_that_settled_something_is_replaced_at_once():
    made = world()
    made.settle(1)
    made.end(1)
    assert made.plan() == [Spawn(1)]


def test_settled_messages_that_only_its_exit_shows_count_too():
    made = world()
    made.processes[1].settled = 5
    made.end(1)
    assert made.plan() == [Spawn(1)]
    assert made.pool.deaths_in_row == 1


def test_a_young_worker_waits_twice_as_long_each_time_up_to_the_limit():
    """In a pool that is large enough not to back off as a whole."""
    made = world(size=100)
    waits_s = []
    for _ in range(12):
        made.end(7, "error")
        assert made.plan() == []
        waits_s.append(round(made.wait_s - made.now_s, 6))
        made.now_s = made.wait_s
        assert made.plan() == [Spawn(7)]
    assert waits_s == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30]


def test_a_settled_message_of_any_worker_resets_the_wait_of_the_young():
    made = world(size=100)
    for _ in range(5):
        made.end(7)
        made.plan(after_s=60)
    made.settle(3)
    made.end(7)
    assert made.plan() == []
    assert made.wait_s == pytest.approx(made.now_s + 0.1)


def test_a_fork_that_failed_is_a_young_death():
    made = World(Pool(PoolPolicy(1)))
    assert made.pool.plan(1000.0) == [Spawn(0)]
    made.pool.exited(0, 1000.0, status="error", claims=0, settled=0, had_message=False)
    assert made.plan() == []
    assert made.plan(after_s=0.1) == [Spawn(0)]


def test_a_worker_that_stood_idle_for_long_starts_no_row():
    made = world(size=1)
    for _ in range(20):
        made.now_s += 31
        made.end(0)
        assert made.plan() == []
        assert made.plan(after_s=0.1) == [Spawn(0)]
        made.ready()
    assert not made.pool.is_backed_off


def test_a_recycled_worker_is_replaced_and_is_no_death():
    made = world(size=1)
    made.settle(0)
    made.end(0, "recycle")
    assert made.plan() == [Spawn(0)]
    assert made.pool.deaths_in_row == 0


def test_a_worker_that_finishes_unasked_and_idle_is_a_death():
    made = world(size=1)
    made.end(0, "finished")
    assert made.pool.deaths_in_row == 1
    assert made.plan() == []


# ---- the back-off of the pool


@pytest.mark.parametrize(("size", "deaths"), [(1, 3), (3, 3), (8, 8)])
@pytest.mark.parametrize("had_message", [True, False])
def test_a_pool_backs_off_after_so_many_deaths_in_a_row(size, deaths, had_message):
    made = world(size)
    for number in range(deaths):
        assert not made.pool.is_backed_off
        made.end(number % size, had_message=had_message)
        if size == 1:
            made.plan(after_s=0 if number == deaths - 1 else 1)
    assert made.pool.is_backed_off
    assert made.plan() == []
    assert made.wait_s is not None


def test_a_settled_message_in_between_begins_the_row_anew():
    made = world(4)
    for _ in range(50):
        made.end(0, had_message=True)
        made.plan()
        made.end(1, had_message=True)
        made.plan()
        made.settle(3)
    assert not made.pool.is_backed_off


def backed_off(size: int = 4) -> World:
    made = world(size)
    for index in range(size):
        made.end(index, had_message=True)
    assert made.pool.is_backed_off
    return made


def test_a_backed_off_pool_tries_with_one_worker_at_growing_distances():
    made = backed_off()
    waits_s = []
    for _ in range(11):
        assert made.plan() == []
        waits_s.append(round(made.wait_s - made.now_s, 6))
        made.now_s = made.wait_s
        (spawn,) = made.plan()
        assert made.plan(after_s=1000) == []
        made.end(spawn.index, had_message=True)
    assert waits_s == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert made.pool.is_backed_off


@pytest.mark.parametrize("seen_by", ["facts", "exit"])
def test_one_settled_message_ends_the_back_off_and_all_are_spawned(seen_by):
    made = backed_off()
    made.plan(after_s=0.1)
    assert list(made.processes) == [0]
    if seen_by == "facts":
        made.settle(0)
        expected = [Spawn(1), Spawn(2), Spawn(3)]
    else:
        made.processes[0].settled = 1
        made.end(0)
        expected = [Spawn(0), Spawn(1), Spawn(2), Spawn(3)]
    assert not made.pool.is_backed_off
    assert made.plan() == expected


def test_a_settled_message_of_a_worker_from_before_ends_the_back_off_too():
    made = world(4)
    for _ in range(4):
        made.end(0, had_message=True)
        made.plan()
    assert made.pool.is_backed_off
    made.settle(3)
    assert made.plan() == [Spawn(0)]


def test_workers_from_before_the_back_off_stay_and_their_deaths_do_not_delay_the_trial():
    made = world(4)
    for _ in range(4):
        made.end(0, had_message=True)
        made.plan()
    until_s = made.wait_s
    assert sorted(made.processes) == [1, 2, 3]
    made.end(1, had_message=True)
    made.plan()
    assert made.wait_s == until_s
    made.now_s = until_s
    assert len(made.plan()) == 1


def test_a_new_generation_is_tried_at_once_and_replaces_a_trial_that_hangs():
    made = backed_off()
    made.plan(after_s=0.1)
    made.pool.set_generation(1)
    assert made.plan() == [Term(0)]
    made.end(0)
    (spawn,) = made.plan()
    made.ready()
    made.settle(spawn.index)
    assert len(made.plan()) == 3


def test_a_new_generation_ends_the_wait_of_a_backed_off_pool():
    made = backed_off()
    for _ in range(8):
        made.now_s = made.wait_s or made.now_s
        for spawn in made.plan():
            made.end(spawn.index, had_message=True)
        made.plan()
    assert made.wait_s > made.now_s + 5
    made.pool.set_generation(1)
    assert len(made.plan()) == 1


def test_a_trial_that_outlived_its_back_off_is_no_trial_of_the_next_one():
    made = backed_off()
    made.plan(after_s=0.1)
    made.settle(0)
    made.plan()
    for index in (1, 2, 3, 1):
        made.end(index, had_message=True)
        made.plan()
    assert made.pool.is_backed_off
    assert made.plan(after_s=0.1) == [Spawn(1)]


# ---- size


def test_the_highest_indexes_leave_first_and_are_not_replaced():
    made = world(4)
    made.pool.set_size(2)
    assert made.plan() == [Term(3), Term(2)]
    assert made.wait_s == made.now_s + 30
    assert made.plan(after_s=1) == []
    made.end(3, "finished")
    made.end(2, "finished")
    assert made.plan() == []
    assert made.pool.indexes == [0, 1]
    assert made.pool.state(3) is None


def test_one_that_was_asked_to_leave_is_replaced_when_its_index_is_wanted_again():
    made = world(2)
    made.pool.set_size(1)
    made.plan()
    made.pool.set_size(2)
    assert made.plan() == []
    made.end(1, "finished")
    assert made.plan() == [Spawn(1)]
    assert made.pool.deaths_in_row == 0


def test_one_that_waits_for_its_respawn_is_dropped_when_the_pool_shrinks():
    made = world(4)
    made.end(3)
    made.pool.set_size(3)
    assert made.pool.state(3) is None
    assert made.plan(after_s=1) == []


def test_a_pool_of_size_nothing_is_empty_when_all_have_left():
    made = world(1)
    made.pool.set_size(0)
    made.plan()
    assert not made.pool.is_empty
    made.end(0, "finished")
    assert made.pool.is_empty
    assert made.plan() == []


def test_one_that_was_asked_to_leave_may_take_its_time_for_the_message_in_hand():
    """stop_timeout_s begins when nothing is in hand any more: then it hangs elsewhere."""
    made = world(2)
    made.pool.set_size(1)
    made.holds(1, 5)
    made.plan()
    for age_s in range(20, 600, 20):
        made.holds(1, age_s)
        assert made.plan(after_s=20) == []
    made.settle(1)
    assert made.plan(after_s=29) == []
    assert made.plan(after_s=1) == [Kill(1, "stopped")]


# ---- generations


def test_a_new_generation_replaces_one_worker_at_a_time_and_waits_until_it_is_ready():
    made = world(3)
    made.pool.set_generation(1)
    for index in range(3):
        assert made.pool.is_replacing
        assert made.plan() == [Term(index)]
        assert made.plan(after_s=1) == []
        made.end(index, "finished")
        assert made.plan() == [Spawn(index)]
        assert made.plan(after_s=1) == []
        made.ready(index)
    assert made.plan() == []
    assert not made.pool.is_replacing


def test_a_new_generation_that_cannot_start_costs_one_worker_only():
    made = world(4)
    made.pool.set_generation(1)
    made.plan()
    made.end(0, "finished")
    for _ in range(10):
        made.plan(after_s=60)
        if 0 in made.processes:
            made.end(0, "error")
    assert made.pool.indexes == [1, 2, 3]
    assert not any(process.is_termed for process in made.processes.values())


def test_workers_of_the_old_generation_that_never_got_ready_are_replaced_first():
    made = world(3, is_running=False)
    made.ready(0, 2)
    made.pool.set_generation(1)
    assert made.plan() == [Term(1)]


def test_the_replacement_of_one_that_died_is_of_the_new_generation():
    made = world(2)
    made.end(0, had_message=True)
    made.pool.set_generation(1)
    assert made.plan() == [Spawn(0)]
    made.ready(0)
    assert made.plan() == [Term(1)]


# ---- the time limit


def test_a_message_in_hand_for_too_long_costs_its_worker():
    made = world(2, time_limit_s=10)
    made.holds(0, 9)
    assert made.plan() == []
    assert made.wait_s == made.now_s + 1
    made.holds(0, 10)
    made.holds(1, 3)
    assert made.plan(after_s=1) == [Kill(0, "timeout")]
    assert made.pool.kill_cause(0) == "timeout"
    made.end(0, had_message=True)
    assert made.plan() == [Spawn(0)]
    assert made.pool.deaths_in_row == 0
    assert made.pool.kill_cause(0) is None


def test_a_kill_is_repeated_each_second_with_its_first_cause_until_the_exit_is_seen():
    made = world(1, time_limit_s=10)
    made.holds(0, 10)
    assert made.plan() == [Kill(0, "timeout")]
    assert made.wait_s == made.now_s + 1
    assert made.plan(after_s=0.5) == []
    made.pool.kill_now()
    assert made.plan(after_s=0.5) == [Kill(0, "timeout")]


def test_without_a_limit_a_message_may_take_for_ever():
    made = world(1)
    made.holds(0, 1e9)
    assert made.plan(after_s=1e9) == []


# ---- stopping


def test_drain_asks_all_to_leave_and_kills_what_is_left_at_its_deadline():
    made = world(3)
    made.pool.drain(made.now_s)
    assert made.plan() == [Term(2), Term(1), Term(0)]
    assert made.wait_s == made.now_s + 30
    made.end(1, "finished")
    assert made.plan(after_s=29.9) == []
    assert made.plan(after_s=0.2) == [Kill(2, "stopped"), Kill(0, "stopped")]
    made.end(0)
    made.end(2)
    assert made.pool.is_empty
    assert made.plan(after_s=100) == []


def test_quick_after_drain_shortens_the_time_and_sends_no_second_term():
    made = world(1)
    made.pool.drain(made.now_s)
    made.plan()
    made.pool.quick(made.now_s)
    assert made.plan() == []
    assert made.wait_s == made.now_s + 5
    assert made.plan(after_s=5) == [Kill(0, "stopped")]


def test_drain_after_quick_lengthens_nothing():
    made = world(1)
    made.pool.quick(made.now_s)
    made.pool.drain(made.now_s)
    made.plan()
    assert made.wait_s == made.now_s + 5


def test_kill_now_kills_all_without_asking():
    made = world(2, is_running=False)
    made.pool.kill_now()
    assert made.plan() == [Kill(1, "stopped"), Kill(0, "stopped")]


def test_nothing_is_spawned_once_the_pool_stops():
    made = world(4)
    made.end(0, had_message=True)
    made.end(1)
    made.pool.drain(made.now_s)
    made.pool.set_size(10)
    made.pool.set_generation(5)
    made.plan(after_s=1)
    made.end(2, had_message=True)
    assert made.plan(after_s=1) == []
    assert made.pool.indexes == [3]
    assert made.pool.target == 0


def test_a_worker_not_forked_yet_is_asked_to_leave_when_it_is():
    pool = Pool(PoolPolicy(1))
    assert pool.plan(0.0) == [Spawn(0)]
    pool.drain(0.0)
    assert pool.plan(0.0) == []
    assert not pool.is_empty
    pool.spawned(0, 123, 0.0)
    assert pool.plan(0.0) == [Term(0), Wait(30.0)]


# ---- reports that cannot be


def test_impossible_reports_are_bugs():
    made = world(1)
    with pytest.raises(AssertionError, match="has process"):
        made.pool.spawned(0, 1, 0.0)
    with pytest.raises(AssertionError, match="never to be spawned"):
        made.pool.is_ready(5, 0.0)
    made.end(0)
    with pytest.raises(AssertionError, match="has no process"):
        made.pool.exited(0, 0.0, status="signal", claims=0, settled=0, had_message=False)


def test_facts_of_a_process_that_has_ended_are_left_out():
    made = world(1)
    made.end(0)
    made.pool.facts(0, 9, 9, has_message=True, message_age_s=1e9)
    made.pool.facts(7, 9, 9, has_message=True, message_age_s=1e9)
    assert made.pool.deaths_in_row == 1


# ---- any history


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens in whatever order: the World's own asserts, these invariants, and the end in teardown()."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Pool(PoolPolicy(3, time_limit_s=20.0)))
        self.pool = self.world.pool

    @rule(after_s=st.sampled_from([0.0, 0.05, 0.1, 1.0, 6.0, 31.0]))
    def plan(self, after_s):
        was_backed_off = self.pool.is_backed_off
        actions = self.world.plan(after_s=after_s)
        spawned = [action.index for action in actions if isinstance(action, Spawn)]
        assert not (spawned and self.pool.is_stopping)
        assert all(index < self.pool.policy.size for index in spawned)
        assert len(spawned) <= 1 or not was_backed_off
        active = [
            process for process in self.world.processes.values() if not process.is_termed and not process.killed_s
        ]
        assert len(active) <= self.pool.target
        assert self.world.plan() == [], "not idempotent"

    def _some(self, data):
        return data.draw(st.sampled_from(sorted(self.world.processes)))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def ready(self, data):
        self.world.ready(self._some(data))

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data())
    def settle(self, data):
        index = self._some(data)
        self.world.settle(index)
        assert not self.pool.is_backed_off
        assert self.pool.deaths_in_row == 0

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data(), age_s=st.sampled_from([0.0, 1.0, 19.0, 20.0, 50.0]))
    def hold(self, data, age_s):
        self.world.holds(self._some(data), age_s)

    @precondition(lambda self: self.world.processes)
    @rule(data=st.data(), status=st.sampled_from(["signal", "error", "finished", "oom"]), had_message=st.booleans())
    def end(self, data, status, had_message):
        self.world.end(self._some(data), status, had_message=had_message)

    @rule(size=st.integers(0, 6))
    def resize(self, size):
        self.pool.set_size(size)

    @rule()
    def reload(self):
        self.pool.set_generation(self.pool.generation + 1)

    @precondition(lambda self: self.world.processes)
    @rule(how=st.sampled_from(["drain", "quick", "kill_now"]), go=st.integers(0, 4))
    def stop(self, how, go):
        if go:  # else nearly every history is a short one
            return
        if how == "kill_now":
            self.pool.kill_now()
        else:
            getattr(self.pool, how)(self.world.now_s)

    @invariant()
    def knows_every_process(self):
        assert self.pool.indexes == sorted(self.world.processes)
        assert self.pool.is_empty == (not self.world.processes)

    def teardown(self):
        """From now on all goes well, and plan() is asked at the times it names only."""
        for _ in range(100):
            self.world.plan()
            for index, process in list(self.world.processes.items()):
                if process.killed_s or (process.is_termed and not self.pool.is_stopping):
                    self.world.end(index, "finished")
                elif not process.is_termed:
                    self.world.ready(index)
                    self.world.settle(index)
            self.world.now_s = self.world.wait_s or self.world.now_s
        assert self.pool.indexes == list(range(self.pool.target))
        assert not self.pool.is_replacing
        assert not self.pool.is_backed_off or not self.pool.target


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
