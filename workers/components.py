"""
components - a daemon made of components that answer events

A component is a class with callbacks; a Daemon holds a list of them and an event queue. Each event has a chain of
callbacks, called in the order of the list; each is given what the one before it answered, and may end the chain::

    def cbk_event_NAME(self, daemon, args):
        return (daemon.FLAG_CONTINUE, args)         # or daemon.FLAG_STOP

A callback that raises, or answers anything else, ends the chain of that one event. It is logged and counted; the
daemon goes on. The daemon's own callbacks come first in each chain: start, stop, terminate, log_statistics,
signal_hup, signal_usr1, signal_usr2.

A Daemon runs alone by run(), or as the handler of a queue, or of none ("null:"), under a pool: there the worker calls
turn() and wait_s(). Rates and delays go by a clock that nobody can set.

stop: what waits in line is handled, and what is due within MAX_STOP_TIMEOUT seconds; then it is over. A period of
every() begins no new turn. terminate: over after the callback in hand.

A component is whatever has get_events(); of the rest of ZenDaemonComponent it may have what it likes.

Raises: ZenDaemonComponentException for a list of events that is none, by the constructor; what a component's setup()
raises, by setup(). run(), turn() and emit() let nothing out that is an Exception.
Limits: a callback that never returns is ended by the third SIGINT only, one second later, and only while it runs
Python code or a call that a signal interrupts. run() needs the main thread.
Long because: the container and what is contained are one idea.
See also: COMPONENTS.md (how to write one), events (their order), tailer (a component), piper (messages as events).
"""

from __future__ import annotations

import copy
import logging
import math
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

from workers.dump import said, shown
from workers.events import Clock, DescribedError, EventQueueManager, monotonic_s, wall_s
from workers.rates import calc_statistics, worded
from workers.signals import Signals

# Of several names of one number the last one by the alphabet.
SIGNALS_TO_NAMES_DICT: dict[int, str] = {
    getattr(signal, name): name for name in sorted(dir(signal)) if name.startswith("SIG") and "_" not in name
}
MAX_STOP_ATTEMPTS = 3  # so many SIGINT end the loop at once
MAX_STOP_TIMEOUT = 30  # seconds that a graceful stop may take
SLEEP_S_MAX = 10.0  # a step of the wall clock wakes nobody; so long it may go unnoticed
STUCK_S = 1.0  # so long a callback in hand may take when everything is to end at once

Callback = Callable[["Daemon", object], tuple[int, object]]
OnFailure = Callable[[str, object, Exception], None]


class ZenDaemonException(DescribedError):
    """Something is wrong with how a daemon is used."""


class ZenDaemonComponentException(DescribedError):
    """Something is wrong with a component."""


def gen_event_handler(event: str, callback: object, prepend: bool = False) -> dict[str, object]:
    """Make an entry for get_events(); *prepend*: before the callbacks that the event has by then."""
    return {"event": event, "callback": callback, "prepend": prepend}


# ---- components


class ZenDaemonComponent:
    """
    What a daemon is made of. A subclass has callbacks, and names them in get_events().

    Attributes:
        statistics_cur: counters by name, raised by inc_statistic(); may be nested.
        statistics_prev, statistics_ts: the counters at the last get_statistics(), and its time (of *clock*).
        pattern_stats: one line of a statistics' text; is given the text before it, key, cnt, inc and spd.
        clock: seconds, never set back.
    """

    gen_event_handler = staticmethod(gen_event_handler)
    clock: Clock = staticmethod(monotonic_s)
    pattern_stats = "{}\n\t{:20s}  {:>14,} ({:>+10,}, {:>8,.2f} #/s)"

    def __init__(self, **_kwargs: object) -> None:
        self.statistics_cur: dict[str, object] = {}
        self.statistics_prev: dict[str, object] = {}
        self.statistics_ts = self.clock()

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """Answer a gen_event_handler() for each callback. Called once, by the daemon's constructor."""
        raise NotImplementedError(f"{type(self).__name__} has no get_events(), which names its callbacks")

    def setup(self, daemon: Daemon) -> None:
        """Prepare for the daemon's work: in the process that will do it, before the first event."""

    def setup_dump(self, daemon: Daemon) -> None:
        """Log how the component is set up."""

    def get_state(self) -> dict[str, object]:
        """Answer what may help to find out what the component is at."""
        return {"statistics": copy.deepcopy(self.statistics_cur)}

    def get_statistics(self) -> dict[str, dict[str, object]]:
        """Compare the counters with those of the last call; see calc_statistics."""
        now_s = self.clock()
        found = calc_statistics(self.statistics_cur, self.statistics_prev, now_s - self.statistics_ts)
        # All of it: a nested counter that went on in the snapshot too would never be seen to increase.
        self.statistics_prev = copy.deepcopy(self.statistics_cur)
        self.statistics_ts = now_s
        return found

    def inc_statistic(self, key: str, increment: float = 1) -> None:
        """Raise the counter *key* by *increment*."""
        self.statistics_cur[key] = cast(float, self.statistics_cur.get(key, 0)) + increment


class DemoDaemonComponent(ZenDaemonComponent):
    """Does a unit of work every *interval_s* seconds, until the daemon is to stop."""

    def __init__(self, interval_s: float = 1.0) -> None:
        super().__init__()
        self.interval_s = interval_s

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [
            self.gen_event_handler("start", self.cbk_event_start),
            self.gen_event_handler("default", self.cbk_event_default),
            self.gen_event_handler("stop", self.cbk_event_stop),
        ]

    def cbk_event_start(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Begin."""
        daemon.queue.schedule("default")
        return daemon.FLAG_CONTINUE, args

    def cbk_event_default(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Do one unit, and schedule the next."""
        daemon.logger.info("working")
        self.inc_statistic("cnt_default")
        self.inc_statistic("cnt_another", 5)
        if not daemon.is_done():
            daemon.queue.schedule_after(self.interval_s, "default")
        return daemon.FLAG_CONTINUE, args

    def cbk_event_stop(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """End."""
        daemon.logger.info("stopping after %s units", self.statistics_cur.get("cnt_default", 0))
        return daemon.FLAG_CONTINUE, args


class DemoPrintComponent(ZenDaemonComponent):
    """Logs each message of a queue, and commits it."""

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [self.gen_event_handler("message_process", self.cbk_event_message_process)]

    def cbk_event_message_process(self, daemon: Daemon, args: Mapping[str, object]) -> tuple[int, object]:
        """Log the message in *args*."""
        daemon.logger.info("message %s: %.200s", args["id"], str(args["data"]).strip())
        daemon.queue.schedule("message_commit", args)
        self.inc_statistic("cnt_printed")
        return daemon.FLAG_CONTINUE, args


# ---- the daemon


class _Period:
    """Stands for the args of an event of every()."""

    __slots__ = ("args", "seconds")

    def __init__(self, seconds: float, args: object) -> None:
        self.seconds = seconds
        self.args = args


class Daemon:
    """
    The container of *components*; see the header.

    Args:
        name: of the logger, and in the state.
        config, core: what c() and cc() answer.
        stats_interval_s: how often the event log_statistics comes up; 0 is never.
        schedule, schedule_next, schedule_at, schedule_after: the arguments of one such call of the queue each.
        queue: another clock's, for tests.

    Attributes:
        queue: where events are scheduled.
        config: the options.
        callbacks: event to its chain of (component, callback).
        on_failure: called with event, args and error after a callback has raised.
        failures: how many callbacks have.
    """

    FLAG_CONTINUE = 1
    FLAG_STOP = 0
    CORE_FILEQUEUE = "filequeue"  # what cc() knows of the queue in front of components

    def __init__(
        self,
        components: Sequence[ZenDaemonComponent],
        *,
        name: str = "daemon",
        config: Mapping[str, object] | None = None,
        core: Mapping[str, object] | None = None,
        stats_interval_s: float = 300.0,
        schedule: Iterable[tuple[object, ...]] = (("start",),),
        schedule_next: Iterable[tuple[object, ...]] = (),
        schedule_at: Iterable[tuple[object, ...]] = (),
        schedule_after: Iterable[tuple[object, ...]] = (),
        queue: EventQueueManager | None = None,
    ) -> None:
        self.name = name
        self.queue = EventQueueManager() if queue is None else queue
        self.components = list(components)
        self.callbacks: dict[str, list[tuple[object, Callback]]] = {}
        self.logger = logging.getLogger(name)
        self.on_failure: OnFailure | None = None
        self.failures = 0
        self.config, self._core = dict(config or {}), dict(core or {})
        self._labels = _labels(self.components)
        self._periods = 0  # how many events of every() are scheduled
        self._stop = _Period(0, None)  # stands for the args of our own terminate
        self._is_set_up = self._is_done = self._is_stopping = self._is_over = False
        self._interrupts = 0
        self._register(self, self._own_events())
        for component in self.components:
            self._register(component, component.get_events())
        if stats_interval_s:
            self.every(stats_interval_s, "log_statistics")
        for calls, method in (
            (schedule, self.queue.schedule),
            (schedule_next, self.queue.schedule_next),
            (schedule_at, self.queue.schedule_at),
            (schedule_after, self.queue.schedule_after),
        ):
            for arguments in calls:
                cast(Callable[..., None], method)(*arguments)

    # ---- for components

    def c(self, key: str, default: object = None) -> object:
        """Answer the option *key*."""
        return self.config.get(key, default)

    def cc(self, key: str, default: object = None) -> object:
        """Answer what the program itself has found out under *key*."""
        return self._core.get(key, default)

    def dbgout(self, text: object) -> None:
        """Log *text* for who looks closely."""
        self.logger.debug("%s", text)

    def set_done(self) -> None:
        """Begin to stop; see the header. The event stop follows."""
        self._is_done = True

    def is_done(self) -> bool:
        """Whether the daemon is to stop: begin nothing new."""
        return self._is_done

    def every(self, seconds: float, event: str, args: object = None) -> None:
        """
        Schedule *event* each *seconds* from now on, until the daemon is to stop; whatever its callbacks do.

        Such events are no work that is left: see is_busy().
        """
        if not seconds > 0:
            raise ValueError(f"the period of event {event!r} must be more than 0 s, not {seconds!r}")
        self._periods += 1
        self.queue.schedule_after(seconds, event, _Period(seconds, args))

    # ---- for who runs it

    def setup(self) -> None:
        """Set each component up, once: in the process that handles the events."""
        if self._is_set_up:
            return
        self._is_set_up = True
        for hook in ("setup", "setup_dump"):
            for component in self.components:
                getattr(component, hook, _nothing)(self)

    def emit(self, event: str, args: object = None) -> tuple[int, object]:
        """Call the chain of *event* now; the last answer, or (FLAG_STOP, None) when a callback failed."""
        owner: object = self
        try:
            if event not in self.callbacks:
                raise ZenDaemonException(f"there is no callback for event {event!r}")
            flag = self.FLAG_CONTINUE
            for entry in tuple(self.callbacks[event]):
                owner, callback = entry
                flag, args = self._checked(callback(self, args), callback)
                if flag != self.FLAG_CONTINUE:
                    break
        except Exception as error:  # noqa: BLE001 - whatever a component raises is its own failure, not the daemon's
            self._failed(owner, event, args, error)
            return self.FLAG_STOP, None
        return flag, args

    def turn(self, until: Callable[[], bool] | None = None) -> None:
        """
        Handle what waits or is due, until *until* answers true; without it what was there at the call, and no more.

        Never waits. Ends when nothing is due.
        """
        left = math.inf if until is not None else self.queue.count_ready()
        while left > 0 and not (until is not None and until()) and self._handle_next():
            left -= 1

    def wait_s(self) -> float:
        """Seconds until the next event; 0 when one waits, inf when none is scheduled."""
        return max(0.0, self.queue.wait()) if self.queue.count() else math.inf

    def is_busy(self) -> bool:
        """Whether anything but events of every() is scheduled."""
        return self.queue.count() > self._periods

    def stop(self) -> None:
        """Begin to stop, once: the event stop is the next one, and the end is certain. See has_to_finish()."""
        if not self._is_stopping:
            self._begin_to_stop()
            self.queue.schedule_next("stop")

    def has_to_finish(self, *, is_hurried: bool = False) -> bool:
        """Whether a stop has something to handle: what waits in line, or, without hurry, is due before terminate."""
        if self._is_over:
            return False
        if is_hurried or self.queue.has_line():
            return self.queue.has_line()
        for _, _, args in self.queue.timers():
            if args is self._stop:
                return False
            if not isinstance(args, _Period):
                return True
        return False

    def is_over(self) -> bool:
        """Whether the daemon handles no more events, by terminate."""
        return self._is_over

    def get_state(self) -> dict[str, object]:
        """Answer all there is to know of the daemon, such that JSON can say it. Long texts are cut."""
        components: dict[str, object] = {}
        for component in self.components:
            label = self._labels[id(component)]
            try:
                components[label] = getattr(component, "get_state", dict)()
            except Exception as error:  # noqa: BLE001 - the state of the others is wanted all the more
                components[label] = {"error": f"get_state() failed: {error!r}"}
        timers = [(wait_s, event, _args_of(args)) for wait_s, event, args in self.queue.timers()]
        found = said(
            {
                "time": wall_s(),
                "name": self.name,
                "is_done": self._is_done,
                "failures": self.failures,
                "callbacks": {event: [callback for _, callback in chain] for event, chain in self.callbacks.items()},
                "component_list": [f"COMPONENT({type(component).__name__})" for component in self.components],
                "components": components,
                "events": [{"event": event, "args": args} for event, args in self.queue.waiting()],
                "timers": [{"event": event, "in_s": wait_s, "args": args} for wait_s, event, args in timers],
            }
        )
        return cast(dict[str, object], found)

    # ---- alone

    def run(self) -> int:
        """
        Set up, and handle events until there are none left or the daemon is done; 0, or 1 when a callback failed.

        INT: a graceful stop; the third one: at once. TERM: at once, after the event in hand. HUP, USR1 and USR2:
        the event of that name, before what waits. ALRM: only wakes. Blocks. Signal handlers are restored.
        """
        with Signals(_SIGNALS, self._on_signal) as signals:
            try:
                self.setup()
                while not self._is_over and self._run_turn(signals):
                    pass
            finally:
                if self._interrupts >= MAX_STOP_ATTEMPTS:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        return 1 if self.failures else 0

    def _run_turn(self, signals: Signals) -> bool:
        """Handle an event, or wait for one; False when all is done."""
        for number in reversed(signals.taken()):
            if number in _SIGNAL_EVENTS:
                self.queue.schedule_next(_SIGNAL_EVENTS[number])
        if self._is_done:
            self.stop()
        if self._handle_next():
            return True
        # RACE: a SIGINT since the look above makes us done, but the event stop is still to come.
        # See test_an_interrupt_in_the_last_moment_is_a_graceful_stop_too.
        if self._is_stopping and not self.has_to_finish():
            return False
        if self.queue.count():
            signals.wait(min(self.wait_s(), SLEEP_S_MAX))
        else:
            self.set_done()
        return True

    def _on_signal(self, number: int) -> None:
        """Do what cannot wait for the callback in hand. Called by the signal's handler."""
        if number == signal.SIGINT:
            self._interrupts += 1
            self._is_done = True
        if number == signal.SIGTERM or self._interrupts >= MAX_STOP_ATTEMPTS:
            self._is_over = True
        if self._interrupts == MAX_STOP_ATTEMPTS:
            signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, STUCK_S)

    def _begin_to_stop(self) -> None:
        """See to it that the stop comes to an end."""
        self._is_done = self._is_stopping = True
        self._periods += 1
        self.queue.schedule_after(MAX_STOP_TIMEOUT, "terminate", self._stop)

    # ---- one event

    def _handle_next(self) -> bool:
        """Handle the event that waits or is due; False when there is none, or all is over."""
        if self._is_over or not self.queue.count():
            return False
        event, args = self.queue.next()
        if event is None:
            return False
        if isinstance(args, _Period):
            self._periods -= 1
            # ORDER: the next one before this one is handled: a callback that raises or ends the chain ends no period.
            # See test_a_period_goes_on_when_a_callback_raises_or_ends_the_chain.
            if args.seconds and not self._is_done:
                self.every(args.seconds, event, args.args)
            args = args.args
        self.emit(event, args)
        self.queue.cause = None
        return True

    def _checked(self, answer: object, callback: Callback) -> tuple[int, object]:
        match answer:
            case (self.FLAG_CONTINUE | self.FLAG_STOP as flag, args):
                return flag, args
        raise ZenDaemonComponentException(
            f"{shown(callback)} answered {answer!r:.200}; a callback answers (daemon.FLAG_CONTINUE, args) "
            "or (daemon.FLAG_STOP, args)"
        )

    def _failed(self, owner: object, event: str, args: object, error: Exception) -> None:
        self.failures += 1
        label = self._labels.get(id(owner), "the daemon")
        # Whoever is told of the failure keeps the traceback.
        trace = error if self.on_failure is None else None
        self.logger.error("event %s failed in %s: %s", event, label, shown(error), exc_info=trace)
        if self.on_failure is not None:
            self.on_failure(event, args, error)

    # ---- callbacks

    def _register(self, owner: object, events: Iterable[Mapping[str, object]]) -> None:
        for entry in events:
            match entry:
                case {"event": str(event), "callback": callback} if callable(callback):
                    chain = self.callbacks.setdefault(event, [])
                    chain.insert(0 if entry.get("prepend") else len(chain), (owner, callback))
                case _:
                    raise ZenDaemonComponentException(
                        f"get_events() of {type(owner).__name__} answered {entry!r:.200} among others; each is a "
                        'mapping of "event" to its name and of "callback" to what is called'
                    )

    def _own_events(self) -> list[dict[str, object]]:
        return [
            gen_event_handler("signal_hup", self.cbk_event_signal),
            gen_event_handler("signal_usr1", self.cbk_event_signal),
            gen_event_handler("signal_usr2", self.cbk_event_signal),
            gen_event_handler("start", self.cbk_event_start),
            gen_event_handler("stop", self.cbk_event_stop),
            gen_event_handler("terminate", self.cbk_event_terminate),
            gen_event_handler("log_statistics", self.cbk_event_log_statistics),
        ]

    def cbk_event_start(self, _daemon: Daemon, args: object) -> tuple[int, object]:
        """Say that the daemon begins."""
        self.logger.info("starting with %s", ", ".join(self._labels.values()) or "no component")
        return self.FLAG_CONTINUE, args

    def cbk_event_stop(self, _daemon: Daemon, args: object) -> tuple[int, object]:
        """Begin to stop, and see to it that it ends."""
        if not self._is_stopping:
            self._begin_to_stop()
        self.logger.info("stopping")
        return self.FLAG_CONTINUE, args

    def cbk_event_terminate(self, _daemon: Daemon, args: object) -> tuple[int, object]:
        """Handle no more events."""
        self.set_done()
        self._is_over = True
        self.logger.warning("terminating; %d events are left", self.queue.count())
        return self.FLAG_CONTINUE, args

    def cbk_event_signal(self, _daemon: Daemon, args: object) -> tuple[int, object]:
        """Go on: what the signals mean is up to the components, and to the pool."""
        return self.FLAG_CONTINUE, args

    def cbk_event_log_statistics(self, _daemon: Daemon, args: object) -> tuple[int, object]:
        """Log the rates of each component that does not do so by itself."""
        own = {id(owner) for owner, _ in self.callbacks["log_statistics"]}
        for component in self.components:
            # get_statistics() begins the next interval, so it is for one to call.
            has_some = hasattr(component, "get_statistics") and getattr(component, "statistics_cur", None)
            if id(component) not in own and has_some:
                pattern = getattr(component, "pattern_stats", ZenDaemonComponent.pattern_stats)
                text = worded(pattern, component.get_statistics())
                for line in text.splitlines():
                    if line.strip():
                        self.logger.info("statistics of %s: %s", self._labels[id(component)], line.strip())
        return self.FLAG_CONTINUE, args


_SIGNAL_EVENTS: dict[int, str] = {
    signal.SIGHUP: "signal_hup",
    signal.SIGUSR1: "signal_usr1",
    signal.SIGUSR2: "signal_usr2",
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, *map(signal.Signals, _SIGNAL_EVENTS))  # ALRM only wakes


def _labels(components: Iterable[ZenDaemonComponent]) -> dict[int, str]:
    """Call each, by its id(), after its class, the second of a class "Class-2"."""
    counts: Counter[str] = Counter()
    found: dict[int, str] = {}
    for component in components:
        name = type(component).__name__
        counts[name] += 1
        found[id(component)] = name if counts[name] == 1 else f"{name}-{counts[name]}"
    return found


def _nothing(_daemon: Daemon) -> None:
    """Stands for what a component does not have."""


def _args_of(args: object) -> object:
    return args.args if isinstance(args, _Period) else args
