"""
piper - the messages of a queue as events for a list of components

A Piper is the handler that `components = [...]` makes of a queue. For each message it schedules message_next, and
events are handled until one of them has settled the message. The Filer is always the first component: it knows the
message in hand, and answers these events; each may be called otherwise by event_map.

    event              args                 what becomes of the message
    message_next       None                 the Filer schedules message_process, or message_banish for an empty one
    message_process    id, data, message    nobody's but the components'
    message_update     id, data             *data* is its content from now on; another attempt begins with what was put
    message_commit     id                   done, and handed on to the output
    message_cancel     id                   done, and not handed on
    message_banish     id, reason           to errors/
    message_dispatch   id, queue_tgt        handed on to that queue: a name of the configuration, or a URL
    message_duplicate  id, queue_tgt        a copy is put there; it stays in hand
    message_enqueue    data                 (none) a new message, into our own queue; the answer has its id
    queue_check        any                  (none) the state says "paused" while the output is full

*id* is the message's name. *data* is text, undecodable bytes surrogate-escaped, so it is byte for byte what was put;
bytes are taken as well. An id that is not of the message in hand is counted (cnt_errors) and stops its event.

What goes wrong with the message in hand ends this attempt, as any failure of a handler: a callback that raises, a copy
that cannot be put, and that nothing is scheduled any more that could settle it. That an event is about the message is
said by its id, or where it has none by its cause: it was scheduled by one that was. The failure of another event ends
no attempt, and a message_enqueue that is another's and meets a queue that is full or away is put off until there is
room, in its order.

At the end what waits in line is handled, and, without hurry, what is due before the daemon's terminate.

Limits: one message at a time in each worker. A message whose components schedule events without end is held until the
queue's time_limit. What was put by message_enqueue or message_duplicate is put again by another attempt.
Long because: the events of a message are one table, and what answers them is read beside it.
See also: components (events and their order), worker (settles), COMPONENTS.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from workers.components import Daemon, ZenDaemonComponent, ZenDaemonException
from workers.dump import shown
from workers.errors import HandlerError, QueueFull, QueueUnavailable
from workers.events import EventQueueManager, about
from workers.handler import CANCELLED, Services, look_up
from workers.message import Done, Forward, Message, Outcome, Reject
from workers.queues.spool import Spool

Answer = tuple[int, object]

EVENTS = (
    "start", "queue_check", "message_enqueue", "message_next", "message_update", "message_commit", "message_banish",
    "message_cancel", "message_dispatch", "message_duplicate",
)  # fmt: skip
COUNTERS = (
    "cnt_enqueued", "cnt_fetched", "cnt_updated", "cnt_committed", "cnt_banished", "cnt_canceled", "cnt_dispatched",
    "cnt_duplicated", "cnt_errors",
)  # fmt: skip
FAILED_MAX = 5  # so many are named
NOT_SETTLED = "no component settled it; schedule message_commit, or add workers.piper:Commiter"
CHECK_S = 10.0  # between two queue_check
PAUSE_S_MAX = 1.0  # a step of the wall clock wakes nobody
ROOM_S, ROOM_S_MAX = 0.1, 5.0  # between two attempts to put what was put off
TOLD_S = 60.0  # so often it is said that something is
TAKE_UP = "take up what was put off"


class Filer(ZenDaemonComponent):
    """
    Knows the message in hand and settles it. *event_map*: events that are called otherwise.

    Attributes:
        outcome: of the message in hand; None while it is not settled.
        failure: what went wrong with it, or None.
    """

    def __init__(self, event_map: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.event_map = dict(event_map or {})
        self.statistics_cur.update(dict.fromkeys(COUNTERS, 0))
        self.outcome: Outcome | None = None
        self.failure: Exception | None = None
        self._message: Message | None = None
        self._cause: object = None  # of all that the message in hand leads to
        self._room_s = 0.0
        self._is_timed = False  # whether a TAKE_UP is scheduled
        self._told_s = -math.inf
        self._is_fetched = False
        self._updated: bytes | None = None
        self._services: Services | None = None

    # ---- for the Piper

    def open(self, services: Services) -> None:
        """Say what is around."""
        self._services = services

    def take(self, message: Message) -> None:
        """Have *message* in hand."""
        self._message, self._cause = message, object()
        self._is_fetched, self.outcome, self.failure = False, None, None

    def leave(self) -> None:
        """Have nothing in hand."""
        self._message = self._updated = self._cause = None

    def is_over(self) -> bool:
        """Whether the message in hand needs no more events."""
        return self.outcome is not None or self.failure is not None

    def is_about(self, daemon: Daemon, args: object) -> bool:
        """Whether the event that is handled, with *args*, is about the message in hand."""
        if self._message is None:
            return False
        subject = about(args)
        return daemon.queue.cause is self._cause if subject is None else subject == self._message.name

    def named(self, event: str) -> str:
        """What *event* is called here."""
        return self.event_map.get(event, event)

    # ---- a component

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        own = [self.gen_event_handler(self.named(event), getattr(self, f"cbk_event_{event}")) for event in EVENTS]
        return [*own, self.gen_event_handler(TAKE_UP, self.cbk_event_take_up)]

    def get_state(self) -> dict[str, object]:
        """See ZenDaemonComponent."""
        message = None if self._message is None else self._message.name
        is_held_up = self._services is not None and self._services.is_held_up()
        return {**super().get_state(), "status": "paused" if is_held_up else "running", "message": message}

    def cbk_event_start(self, daemon: Daemon, args: object) -> Answer:
        """Begin to look at the output now and then; who claims looks for itself, each time."""
        daemon.queue.schedule(self.named("queue_check"))
        daemon.queue.schedule(self.named("message_next"))
        daemon.every(CHECK_S, self.named("queue_check"))
        return daemon.FLAG_CONTINUE, args

    def cbk_event_queue_check(self, daemon: Daemon, args: object) -> Answer:
        """Nothing to do: the worker claims only while there is room. Components may hang on to this event."""
        return daemon.FLAG_CONTINUE, args

    def cbk_event_message_next(self, daemon: Daemon, _args: object) -> Answer:
        """Let the message in hand be processed; one of blanks goes to errors/."""
        message = self._message
        if message is None or self._is_fetched:
            return daemon.FLAG_CONTINUE, None
        self._is_fetched = True
        daemon.queue.cause = self._cause  # whatever has led to this event, the next one is about the message
        data = text_of(message.body)
        self.inc_statistic("cnt_fetched")
        if data.strip():
            daemon.queue.schedule(self.named("message_process"), {"id": message.name, "data": data, "message": message})
        else:
            reason = "it holds only blanks" if data else "it is empty"
            daemon.queue.schedule(self.named("message_banish"), {"id": message.name, "reason": reason})
        return daemon.FLAG_CONTINUE, None

    def cbk_event_message_enqueue(self, daemon: Daemon, args: object) -> Answer:
        """Put a new message; its id goes into the answer."""

        is_own = self.is_about(daemon, args)

        def put(given: Mapping[str, object]) -> object:
            data = bytes_of(given["data"])
            # ORDER: behind what was put off before it, or messages would change their order.
            # See test_what_is_enqueued_behind_something_that_was_put_off_waits_for_it.
            if not is_own and daemon.queue.has_put_off():
                daemon.queue.put_off(self.named("message_enqueue"), given)
                return None
            try:
                name = self._around.queue.put(data)
            except (QueueUnavailable, QueueFull) as error:
                if is_own:
                    raise
                self._wait_for_room(daemon, given, error)
                return None
            self._room_s = 0.0
            return None if name is None else {**given, "id": name}

        return self._do("cnt_enqueued", put, daemon, args)

    def _wait_for_room(self, daemon: Daemon, args: object, error: Exception) -> None:
        """
        Put a message_enqueue off.

        Not in place, for that would keep this worker from the messages whose end makes room.
        """
        # A queue that is full again and again is no news.
        if self.clock() - self._told_s >= TOLD_S:
            self._told_s = self.clock()
            daemon.logger.warning("%s; message_enqueue waits until it works again", error)
        daemon.queue.put_off(self.named("message_enqueue"), args)
        if not self._is_timed:
            self._room_s, self._is_timed = min(self._room_s * 2 or ROOM_S, ROOM_S_MAX), True
            daemon.queue.schedule_after(self._room_s, TAKE_UP)

    def cbk_event_take_up(self, daemon: Daemon, args: object) -> Answer:
        """Try again what was put off."""
        self._is_timed = False
        daemon.queue.take_up()
        return daemon.FLAG_CONTINUE, args

    def cbk_event_message_update(self, daemon: Daemon, args: object) -> Answer:
        """Give it another content, for what follows in this attempt."""

        def update(given: Mapping[str, object]) -> object:
            self._in_hand(given)
            self._updated = bytes_of(given["data"])
            return given

        return self._do("cnt_updated", update, daemon, args)

    def cbk_event_message_commit(self, daemon: Daemon, args: object) -> Answer:
        """Done: to the output, if there is one."""
        output = self._around.output

        def commit(_given: Mapping[str, object]) -> Outcome:
            return Forward(self._updated, output) if output and self._updated is not None else Done()

        return self._settled("cnt_committed", commit, daemon, args)

    def cbk_event_message_cancel(self, daemon: Daemon, args: object) -> Answer:
        """Done, and not handed on."""
        return self._settled("cnt_canceled", lambda _: CANCELLED, daemon, args)

    def cbk_event_message_banish(self, daemon: Daemon, args: object) -> Answer:
        """To errors/, with the reason."""

        def banish(given: Mapping[str, object]) -> Outcome:
            return Reject(str(given.get("reason") or "banished by a component"))

        return self._settled("cnt_banished", banish, daemon, args)

    def cbk_event_message_dispatch(self, daemon: Daemon, args: object) -> Answer:
        """To another queue."""

        def dispatch(given: Mapping[str, object]) -> Outcome:
            target = _text(given, "queue_tgt")
            self._around.following(target)  # one that is not there is the component's fault, found here
            return Forward(self._updated, target)

        return self._settled("cnt_dispatched", dispatch, daemon, args)

    def cbk_event_message_duplicate(self, daemon: Daemon, args: object) -> Answer:
        """A copy into another queue."""

        def duplicate(given: Mapping[str, object]) -> object:
            message = self._in_hand(given)
            queue = self._around.following(_text(given, "queue_tgt"))
            body = message.body if self._updated is None else self._updated
            if isinstance(queue, Spool) and isinstance(self._around.queue, Spool):
                queue.enter(body, message.name)  # a copy keeps the name where both speak the same protocol
            else:
                queue.put(body)
            return given

        return self._do("cnt_duplicated", duplicate, daemon, args)

    # ---- what they have in common

    @property
    def _around(self) -> Services:
        if self._services is None:
            raise ZenDaemonException("the filer is not part of a running queue")
        return self._services

    def _in_hand(self, args: Mapping[str, object]) -> Message:
        """The message that *args* speak of. An id is compared, and never made a path of."""
        name = args["id"]
        if self._message is None or self.outcome is not None or type(name) is not str or name != self._message.name:
            raise NotInHand(f"{shown(name):.300} is not the message in hand")
        return self._message

    def _settled(
        self, counter: str, outcome_of: Callable[[Mapping[str, object]], Outcome], daemon: Daemon, args: object
    ) -> Answer:
        def settle(given: Mapping[str, object]) -> object:
            self._in_hand(given)
            self.outcome = outcome_of(given)
            return given

        return self._do(counter, settle, daemon, args)

    def _do(self, counter: str, do: Callable[[Mapping[str, object]], object], daemon: Daemon, args: object) -> Answer:
        """*do* it and count it; what goes wrong is counted too, and with the message in hand that ends its attempt."""
        try:
            if not isinstance(args, Mapping):
                raise TypeError(f"args are a mapping, not {args!r:.200}")
            answer = do(args)
        except Exception as error:  # noqa: BLE001 - it is logged, counted, and the attempt fails of it
            self.inc_statistic("cnt_errors")
            daemon.logger.error("%s: %s: %s", counter.removeprefix("cnt_"), type(error).__name__, error)
            if self.outcome is None and not isinstance(error, NotInHand) and self.is_about(daemon, args):
                self.failure = self.failure or error
            return daemon.FLAG_STOP, None
        if answer is None:
            return daemon.FLAG_STOP, None
        self.inc_statistic(counter)
        return daemon.FLAG_CONTINUE, answer


class NotInHand(ZenDaemonException):
    """An event names another message than the one in hand."""


class Commiter(ZenDaemonComponent):
    """Commits what has been processed: the last one of a list."""

    def __init__(self, event_map: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.event_map = dict(event_map or {})

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        event = self.event_map.get("message_process", "message_process")
        return [self.gen_event_handler(event, self.cbk_event_message_process)]

    def cbk_event_message_process(self, daemon: Daemon, args: object) -> Answer:
        """Schedule message_commit, with the same args."""
        daemon.queue.schedule(self.event_map.get("message_commit", "message_commit"), args)
        self.inc_statistic("cnt_commits")
        return daemon.FLAG_CONTINUE, args


class Piper:
    """
    A queue's handler, made of *components*; see workers.handler.EventDriven for its verbs.

    Args:
        name: of the logger.
        options, core: what c() and cc() of the daemon answer.
        event_map: see Filer.
        stats_interval_s: how often rates are logged; 0 is never.
        queue: of events; another clock's, for tests.
    """

    def __init__(
        self,
        components: Sequence[ZenDaemonComponent],
        *,
        name: str = "piper",
        options: Mapping[str, object] | None = None,
        core: Mapping[str, object] | None = None,
        event_map: Mapping[str, str] | None = None,
        stats_interval_s: float = 300.0,
        queue: EventQueueManager | None = None,
    ) -> None:
        self.filer = Filer(event_map)
        known = dict(core or {})
        known.setdefault(
            Daemon.CORE_FILEQUEUE,
            {"dir_queue": _place(known.get("queue")), "dir_next_queue": _place(known.get("output"))},
        )
        self.daemon = Daemon(
            [self.filer, *components], name=name, config=options, core=known, stats_interval_s=stats_interval_s,
            queue=queue,
        )  # fmt: skip
        self.daemon.on_failure = self._on_failure
        self._failed: list[str] = []  # events that are not about the message in hand, since it is
        self._services: Services | None = None

    def __call__(self, message: Message) -> Outcome:
        """
        Handle events until the message is settled.

        Raises what a callback raised, and HandlerError when there is nothing left that could settle it.
        """
        daemon, filer, sleep = self.daemon, self.filer, self._around.sleep
        daemon.queue.forget(message.name)  # what an earlier one of this name has left behind would settle this one
        filer.take(message)
        daemon.queue.schedule(filer.named("message_next"))
        self._failed.clear()
        try:
            while not filer.is_over():
                daemon.turn(until=filer.is_over)
                if not filer.is_over():
                    if daemon.is_over():
                        raise HandlerError("the daemon was terminated with the message in hand")
                    if not daemon.is_busy():
                        also = f"; failed meanwhile: {', '.join(self._failed)}" if self._failed else ""
                        raise HandlerError(NOT_SETTLED + also)
                    sleep(min(daemon.wait_s(), PAUSE_S_MAX))
            if filer.outcome is None:
                raise cast(Exception, filer.failure)
            return filer.outcome
        finally:
            if filer.outcome is None:  # this attempt is over, and so is what was still to be done in it
                daemon.queue.forget(message.name)
            else:
                daemon.queue.forget_timers(message.name)
            filer.leave()
            daemon.queue.take_up()  # a message that ends may have made room

    def _on_failure(self, event: str, args: object, error: Exception) -> None:
        """A callback raised: that ends the message in hand, unless it was about something else."""
        filer, daemon = self.filer, self.daemon
        if event == filer.named("message_process") and event not in daemon.callbacks:
            return  # nothing is left to be handled then, and that is said
        is_about = event == filer.named("message_next") or filer.is_about(daemon, args)
        if is_about and not filer.is_over():
            filer.failure = error
            return
        daemon.logger.error("what failed in event %s:", event, exc_info=error)
        if event not in self._failed and len(self._failed) < FAILED_MAX:
            self._failed.append(event)

    # ---- between messages

    def open(self, services: Services) -> None:
        """See EventDriven. Raises HandlerError when a component cannot be set up."""
        self._services = services
        self.filer.open(services)
        try:
            self.daemon.setup()
        except Exception as error:
            raise HandlerError(f"a component cannot be set up: {type(error).__name__}: {error}") from error
        self.daemon.turn()  # the start, or a stop that comes at once would be before it

    @property
    def _around(self) -> Services:
        assert self._services is not None  # noqa: S101 - open() comes first
        return self._services

    def turn(self) -> None:
        """See EventDriven."""
        self.daemon.turn()

    def wait_s(self) -> float:
        """See EventDriven."""
        return math.inf if self.daemon.is_over() else self.daemon.wait_s()

    def is_busy(self) -> bool:
        """See EventDriven."""
        return not self.daemon.is_over() and self.daemon.is_busy()

    def is_done(self) -> bool:
        """See EventDriven."""
        return self.daemon.is_done()

    def state(self) -> dict[str, object]:
        """See EventDriven."""
        return self.daemon.get_state()

    def close(self) -> None:
        """The event stop, and what is to be handled after it; see the header."""
        daemon, services = self.daemon, self._around
        daemon.set_done()
        daemon.stop()
        daemon.queue.take_up()
        while daemon.has_to_finish(is_hurried=services.is_hurried()):
            services.sleep(min(daemon.wait_s(), PAUSE_S_MAX))
            daemon.turn()
        if left := daemon.queue.waiting():
            names = ", ".join(sorted({event for event, _ in left}))
            daemon.logger.error("%d events were not handled before the end: %s", len(left), names)


def component_of(use: str, keywords: Mapping[str, object]) -> ZenDaemonComponent:
    """The component "MODULE:NAME", made with *keywords*. Raises HandlerError."""
    found = look_up(use)
    if not callable(found):
        raise HandlerError(f"component {use!r} is a {type(found).__name__}, not a class")
    try:
        component = found(**keywords)
    except Exception as error:
        # Only what the arguments are called: their values may be secrets, and this comes into the log.
        given = ", ".join(keywords)
        raise HandlerError(
            f"component {use!r} cannot be made with ({given}): {type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(component, "get_events", None)):
        raise HandlerError(f"component {use!r} is a {type(component).__name__}, which has no get_events()")
    return cast(ZenDaemonComponent, component)


def text_of(body: bytes) -> str:
    """The same bytes as text: what is no UTF-8 is surrogate-escaped, line ends stay as they are."""
    return body.decode("utf-8", "surrogateescape")


def bytes_of(data: object) -> bytes:
    """What text_of() made text of, or bytes as they are. Raises TypeError for anything else."""
    if isinstance(data, str):
        return data.encode("utf-8", "surrogateescape")
    if isinstance(data, bytes):
        return data
    raise TypeError(f"the data of a message is text or bytes, not {type(data).__name__}")


def _place(url: object) -> str | None:
    """The directory of a spool queue, of another one its URL."""
    return str(url).removeprefix("spool:") if url else None


def _text(args: Mapping[str, object], key: str) -> str:
    found = args.get(key)
    if not isinstance(found, str) or not found:
        raise TypeError(f"{key} is a name or a URL, not {found!r:.200}")
    return found
