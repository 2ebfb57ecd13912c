"""Whatever happens, in whatever order: never more processes than wanted, and every stop ends."""

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fcgimgr.core.generation import Hold, PoolState, Return
from fcgimgr.core.process import ALIVE, Backoff, Exited, Fatal, Spawning, Starting, State, Stopped, Stopping

from .history import History

INDEXES = st.integers(0, 5)


class PoolMachine(RuleBasedStateMachine):
    """Throws everything at a pool that the manager can, in any order."""

    @initialize(
        numprocs=st.integers(1, 4),
        startsecs=st.sampled_from([0.0, 1.0]),
        startretries=st.sampled_from([-1, 0, 2]),
        autorestart=st.sampled_from([True, False, "unexpected"]),
        ready=st.sampled_from(["startsecs", "notify", "accepts"]),
        on_fatal=st.sampled_from(["close", "keep", "retry"]),
        max_lifetime=st.sampled_from([None, None, 0.5, 7.0]),
        ours=st.booleans(),
    )
    def begin(self, ours, **keys):
        self.history = History(stopwaitsecs=3, ready_timeout=5, **({"wsgi": "m:app"} if ours else {}), **keys)

    @rule()
    def start(self):
        self.history.start()

    @rule(index=INDEXES)
    def start_one(self, index):
        if index < len(self.history.states):
            self.history.start(f"app_{index:02}")

    @rule()
    def stop(self):
        self.history.stop()

    @rule(index=INDEXES)
    def stop_one(self, index):
        if index < len(self.history.states):
            self.history.stop(f"app_{index:02}")

    @rule()
    def restart(self):
        self.history.restart()

    @rule(index=INDEXES)
    def restart_one(self, index):
        if index < self.history.pool.wanted:
            self.history.restart(f"app_{index:02}")

    @rule(numprocs=st.integers(1, 5))
    def scale(self, numprocs):
        self.history.scale(numprocs)

    @rule()
    def kill(self):
        self.history.kill()

    @rule()
    def restart_hard(self):
        self.history.restart(hard=True)

    @rule(index=INDEXES)
    def recycle(self, index):
        self.history.recycle(f"app_{index:02}")

    @rule(index=INDEXES, hopeless=st.booleans())
    def take_too_long(self, index, hopeless):
        self.history.overdue(f"app_{index:02}", hopeless=hopeless)

    @rule()
    def leave(self):
        self.history.leave()

    @rule()
    def hold(self):
        self.history.feed(Hold())

    @precondition(lambda self: self.history.pool.left and self.history.pool.open)
    @rule()
    def come_back(self):
        self.history.feed(Return())

    @rule(queued=st.integers(0, 2))
    def let_connections_wait(self, queued):
        self.history.queued = queued
        self.history.look()

    @rule(index=INDEXES, busy=st.booleans())
    def be_busy(self, index, busy):
        (self.history.busy.add if busy else self.history.busy.discard)(f"app_{index:02}")
        self.history.look()

    @rule(broken=st.booleans())
    def let_spawns_fail(self, broken):
        self.history.cannot_spawn = "no such file" if broken else None

    @rule(taken=st.booleans())
    def let_the_port_be_taken(self, taken):
        self.history.port_in_use = "in use" if taken else None

    @precondition(lambda self: self.history.pids)
    @rule(choice=st.integers(0, 99), code=st.sampled_from([None, 0, 1]))
    def die(self, choice, code):
        indexes = sorted(self.history.pids)
        name = f"app_{indexes[choice % len(indexes)]:02}"
        self.history.exits(name, code=code, signal=9 if code is None else None)

    @precondition(lambda self: self.history.pids)
    @rule(choice=st.integers(0, 99))
    def say_ready(self, choice):
        indexes = sorted(self.history.pids)
        self.history.ready(f"app_{indexes[choice % len(indexes)]:02}")

    @precondition(lambda self: self.history.pids)
    @rule(choice=st.integers(0, 99), served=st.booleans(), known=st.booleans())
    def be_seen(self, choice, served, known):
        indexes = sorted(self.history.pids)
        name = f"app_{indexes[choice % len(indexes)]:02}"
        self.history.takes(name, served=served and known, known=known)

    @precondition(lambda self: self.history.pids)
    @rule(choice=st.integers(0, 99))
    def go_astray(self, choice):
        indexes = sorted(self.history.pids)
        self.history.astray(f"app_{indexes[choice % len(indexes)]:02}", "it listens elsewhere")

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 5.0, 40.0]))
    def let_time_pass(self, seconds):
        self.history.at(self.history.now + seconds)

    @invariant()
    def core_and_the_world_agree_on_who_lives(self):
        pids = {index: state.pid for index, state in enumerate(self.history.pool.processes) if state.pid is not None}
        assert pids == self.history.pids
        assert all(isinstance(self.history.pool.processes[index], ALIVE) for index in pids)

    @invariant()
    def there_are_never_more_processes_than_wanted_but_those_on_their_way_out_and_stand_ins(self):
        pool = self.history.pool
        if pool.draining is not None:
            return  # a stand-in serves the queue like all others, and goes with them
        for index, state in enumerate(pool.processes[pool.wanted :], pool.wanted):
            assert state.name in ("STOPPING", "STOPPED", "EXITED", "FATAL") or index in pool.stand_ins

    @invariant()
    def each_stand_in_has_somebody_to_stand_in_for(self):
        pool = self.history.pool
        assert len(pool.stand_ins) <= bool(pool.recycling) + len(pool.late)
        assert len(pool.stand_ins) <= pool.wanted + 1
        assert all(pool.wanted <= index < len(pool.processes) for index in pool.stand_ins)
        assert not pool.replacing or pool.recycling
        assert not (pool.recycling and pool.left)

    @invariant()
    def who_took_too_long_has_a_stand_in_unless_new_ones_are_no_good_or_there_are_enough(self):
        pool, history = self.history.pool, self.history
        if pool.up and pool.open and len(pool.stand_ins) < len(pool.late) and history.now >= pool.recycle_from:
            behind = [state for state in pool.processes[pool.wanted :] if state.pid is not None]
            assert len(behind) >= pool.wanted

    @invariant()
    def nothing_lives_without_its_listener(self):
        if self.history.pids:
            assert self.history.listening
        assert self.history.listening == self.history.pool.open

    @invariant()
    def a_listener_is_open_only_where_somebody_may_come_to_serve_it(self):
        history = self.history
        if history.listening and all(isinstance(s, Stopped | Exited | Fatal) for s in history.pool.processes):
            assert history.settings.on_fatal == "keep"
            assert any(isinstance(state, Fatal) for state in history.pool.processes)

    @invariant()
    def what_is_fatal_is_tried_again_if_that_is_asked_for_and_nothing_else_is(self):
        history, pool = self.history, self.history.pool
        fatal = history.pool.fault is not None or "FATAL" in history.states[: pool.wanted]
        wanted = pool.up and not pool.refusing and history.settings.on_fatal == "retry"
        assert (pool.retry_at is not None) == (fatal and wanted)

    @invariant()
    def every_wait_has_a_timer(self):
        for state in self.history.pool.processes:
            if isinstance(state, Backoff) or state.name == "STOPPING":
                assert state.due is not None

    @invariant()
    def only_what_is_recycled_or_a_stand_in_is_waited_for_patiently(self):
        pool = self.history.pool
        patient = [i for i, state in enumerate(pool.processes) if state.name == "STOPPING" and is_patient(state)]
        if pool.up and pool.draining is None:
            being_recycled = pool.recycling[0].index if pool.replacing else None
            assert all(index == being_recycled or index >= pool.wanted for index in patient)
        assert not patient or self.history.settings.wsgi is not None

    @invariant()
    def a_running_pool_has_all_it_wants(self):
        history = self.history
        if history.state is PoolState.RUNNING:
            wanted = history.pool.processes[: history.pool.wanted]
            there = [state.name == "RUNNING" or is_follower(state) for state in wanted]
            others = [state.name == "RUNNING" for state in history.pool.processes[history.pool.wanted :]]
            assert sum(there) + sum(others) >= history.pool.wanted
            missing = [one for one in there if not one]
            assert len(missing) <= len(history.pool.stand_ins)

    def teardown(self):
        if not hasattr(self, "history"):
            return
        history = self.history
        history.stop()
        for _ in range(6):  # TERM is ignored by all; SIGKILL is not
            for sent in [sent for sent in history.signals if sent.signal == 9]:
                if history.pids.get(sent.index) == sent.pid:
                    history.exits(f"app_{sent.index:02}", signal=9)
            history.at(history.now + 4)
        assert history.pids == {}
        assert history.state is PoolState.STOPPED
        assert not history.listening
        assert history.timers == []


def is_patient(state: State) -> bool:
    return isinstance(state, Stopping) and state.patient


def is_follower(state: State) -> bool:
    return isinstance(state, Spawning | Starting) and state.follows and not getattr(state, "missed", False)


TestPool = PoolMachine.TestCase
TestPool.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
