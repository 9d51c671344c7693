"""
worker - the life of one worker: claim, handle, settle, say so on the board, leave

The loop is the only place that catches what a queue raises. A disk that is full
makes the worker wait, never die; a settle is tried until it succeeds or the worker
must leave, so nothing that was handled is forgotten for want of space.

What is done is handed on to the output, if there is one, and nothing is claimed while that is full. A handler that is
driven by events (workers.handler.EventDriven) is served between messages.

TERM asks to leave after the message in hand. A thread beats the slot every second or two
and ends the process when its master is gone (the kernel's parent-death signal is
the faster of the two).
Long because: the loop and the settling of every outcome are one story.
See also: waiting, handler (how a handler is called), queues.base (the verbs), keeper (what
happens to the message of a worker that dies here).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.board import Header, MasterState, Q, Slot, W, WorkerState, WorkerText, observe
from workers.errors import (
    ClaimLost,
    HandlerError,
    InputGone,
    OrchestratorError,
    QueueFull,
    QueueMissing,
    QueueUnavailable,
)
from workers.handler import CANCELLED, DONE, Called, EventDriven, Handler, Services, call
from workers.handlers.onward import Onward
from workers.message import Body, Claim, Done, Forward, Message, Reject, Retry
from workers.output import OutputLimit
from workers.queues import names
from workers.queues.base import Claimable, Consumer, Queue
from workers.queues.open import open_queue
from workers.system import SYSTEM, System, allow_late_timers
from workers.waiting import WAIT_S, Leaving, Wait

log = logging.getLogger(__name__)

TROUBLE_S_MAX = 5.0
IDLE, BUSY = int(WorkerState.IDLE), int(WorkerState.BUSY)
LATE_S = 0.2  # how much later than a second a beat may come
REST_S = 2.0  # between two signs of life of a worker with nothing in hand
MOVED_IN_S = 1.0  # a file older than that may have been moved in, and its name is read for when
LONG_S = 1.0  # a message held longer is named in the process title
FULL_S = 10.0  # an output that is full for longer is spoken of
NO_REST_NS = 1_000_000  # what is left of a rest and is shorter than poll(2) can tell

# A member of an enumeration costs as much to look up as a word to write, and these are written for each message.
CLAIMS, PROCESS_CLAIMS, PROCESS_SETTLED = int(W.CLAIMS), int(W.PROCESS_CLAIMS), int(W.PROCESS_SETTLED)
MESSAGE_SINCE_NS, LAST_DONE_MS, STATE = int(W.MESSAGE_SINCE_NS), int(W.LAST_DONE_MS), int(W.STATE)
WAITING, PROCESSING = int(W.WAITING), int(W.PROCESSING)
OUTCOME_WORDS = {
    "done": int(W.DONE),
    "forwarded": int(W.FORWARDED),
    "retried": int(W.RETRIED),
    "rejected": int(W.REJECTED),
    "released": int(W.RELEASED),
    "fenced": int(W.FENCED),
    "input_gone": int(W.INPUT_GONE),
}


@dataclass(slots=True)
class Worker:
    """
    One worker of one queue; ``run`` is its life.

    Attributes:
        title: called with a text for the process title, at most once a second.
        parent: the master's pid, or None for a worker without one.
        queues: names of configured queues to their URLs at the start, for Forward(queue=name); the board knows better.
        time_limit_s: the master kills a worker that handles one message for longer; told to the handler as deadline.
        message_size_max: bytes; a larger message is rejected, nobody having read it.
        is_until_empty: leave when a scan finds nothing (a worker without a master).
        output: where what is done is handed on to, a name or a URL; "" for nowhere.
        output_limit: claim nothing while so many wait there, or where an Onward goes; 0 is no limit.
        output_wait_s: the longest time between two looks at a full output.
        is_done: after run(), whether the handler has said that there will never be more to do.
        save_state: called with the state of a handler that is driven by events when it is asked for, and at the end.
    """

    queue: Queue
    handler: Handler
    consumer: Consumer
    leaving: Leaving
    wait: Wait
    queues: Mapping[str, str] = field(default_factory=dict)
    title: Callable[[str], None] | None = None
    parent: int | None = None
    time_limit_s: float | None = None
    message_size_max: int | None = None
    is_until_empty: bool = False
    output: str = ""
    output_limit: int = 0
    output_wait_s: float = 10.0
    save_state: Callable[[Mapping[str, object]], None] | None = None
    system: System = SYSTEM
    is_done: bool = False
    _next: dict[str, Queue] = field(default_factory=dict)
    _trouble_s: float = 0.0
    _driven: EventDriven | None = None  # the handler, where it is one
    _onward: str = ""  # where all that is done goes: the output, or where an Onward goes
    _limit: OutputLimit | None = None
    _full_s: float = 0.0  # for how long the output was full at the last look
    _group: int = 0  # process group of the program run for the message, 0: none
    _rest_until_ns: int = 0  # until then nothing is looked at, and only the handler's events go on; 0: no rest

    def __post_init__(self) -> None:
        if isinstance(self.handler, EventDriven):
            self._driven = self.handler
        self._onward = self.handler.queue if isinstance(self.handler, Onward) else self.output
        if self._onward and self.output_limit:
            consumer = self.consumer
            self._limit = OutputLimit(
                consumer.board, consumer.worker_slot, consumer.queue_slot, self.output_limit, self._output_queue,
                wait_s_max=self.output_wait_s, system=self.system,
            )  # fmt: skip

    def run(self) -> None:
        """Claim and handle until asked to leave, or done. Returns with nothing in hand. Raises HandlerError."""
        slot = self.consumer.board.worker(self.consumer.worker_slot)
        words = slot.words
        self._start_beating(slot)
        queue, leaving, driven, limit = self.queue, self.leaving, self._driven, self._limit
        if driven is not None:
            driven.open(self._services())
        is_idle = False
        # Busy when there are events: idle and with nothing waiting, it would look as if all were done.
        words[STATE] = self._state_at_rest()
        while not leaving.is_asked:
            try:
                if leaving.is_to_tell and leaving.taken():
                    self._tell()
                if driven is not None:
                    driven.turn()
                    if driven.is_done():
                        break
                if self._is_resting() or (limit is not None and not self._has_room(limit)):
                    is_idle = False
                    continue
                claim = queue.claim()
                if claim is None:
                    if not is_idle:
                        words[STATE], is_idle = self._state_at_rest(), True
                        if limit is not None:
                            limit.rest()
                        queue.settle_leftovers()
                        continue  # look again at once: leftovers may have been claims of ours
                    if driven is not None:
                        words[STATE] = self._state_at_rest()
                    if self.is_until_empty and words[STATE] == IDLE and self._is_empty():
                        break
                    self.wait(self._wait_s(WAIT_S), leaving.fd)
                    continue
            except QueueUnavailable as error:
                self._rest(self._trouble(error))
                continue
            is_idle, self._trouble_s = False, 0.0
            self._handle(slot, claim)
        self.is_done = driven is not None and driven.is_done()  # by itself: closing it does the same
        words[W.STATE] = WorkerState.STOPPING
        self._leave()

    def _wait_s(self, seconds: float) -> float:
        """At most *seconds*, and no longer than until the handler's next event."""
        return seconds if self._driven is None else max(min(seconds, self._driven.wait_s()), 0.0)

    # ---- a handler that is driven by events

    def _services(self) -> Services:
        consumer = self.consumer
        return Services(
            queue=self.queue,
            following=self._following,
            output=self.output,
            worker=consumer.index,
            is_held_up=lambda: consumer.board.worker(consumer.worker_slot).words[W.OUTPUT_FULL] != 0,
            sleep=self._pause,
            is_leaving=lambda: self.leaving.is_asked,
            is_hurried=lambda: consumer.board.header.words[Header.STATE] == MasterState.STOPPING,
        )

    def _pause(self, seconds: float) -> None:
        """A handler's wait. Being asked to leave ends it, once: what is in hand may need more of them."""
        if self.leaving.is_asked:
            self.system.sleep(seconds)
        else:
            self.leaving.wait(seconds)

    def _tell(self) -> None:
        """Have the handler's state saved, where it has one."""
        if self._driven is not None and self.save_state is not None:
            try:
                self.save_state(self._driven.state())
            except OrchestratorError as error:
                log.warning("%s: the state of worker %d: %s", self.queue.url, self.consumer.index, error)

    def _state_at_rest(self) -> int:
        """What the board says while no message is in hand."""
        return BUSY if self._driven is not None and self._driven.is_busy() else IDLE

    # ---- the output

    def _output_queue(self) -> Queue:
        """The output, opened. That it is not there is no fault of a message's. Raises QueueUnavailable."""
        try:
            return self._following(self._onward)
        except QueueUnavailable:
            raise
        except OrchestratorError as error:
            raise QueueUnavailable(f"cannot hand on to {self._onward}: {error}") from error

    def _has_room(self, limit: OutputLimit) -> bool:
        """Whether one more message may be claimed; else there is a rest until it is time for another look."""
        if limit.has_room():
            return True
        self.consumer.board.worker(self.consumer.worker_slot).words[STATE] = self._state_at_rest()
        full_s = limit.full_s()
        if self._full_s < FULL_S <= full_s:
            log.warning("%s: nothing is claimed while %d wait in %s", self.queue.url, limit.limit, self._onward)
        self._full_s = full_s
        self._rest(limit.pause_s())
        return False

    def _rest(self, seconds: float) -> None:
        self._rest_until_ns = self.system.boottime_ns() + int(seconds * 1e9)

    def _is_resting(self) -> bool:
        """Whether the rest is not over; it is waited for, or for the handler's next event."""
        if not self._rest_until_ns:
            return False
        left_ns = self._rest_until_ns - self.system.boottime_ns()
        if left_ns < NO_REST_NS:
            self._rest_until_ns = 0
            return False
        if self._driven is not None:
            self.consumer.board.worker(self.consumer.worker_slot).words[STATE] = self._state_at_rest()
        self.leaving.wait(self._wait_s(left_ns / 1e9))
        return True

    # ---- leaving

    def _is_empty(self) -> bool:
        words = self.consumer.board.queues[self.consumer.queue_slot].words
        # RACE: the keeper moves a due message into incoming/ after that was counted and before deferred/ is. It counts
        # the move before it can be seen. See test_until_empty_does_not_leave_while_a_due_message_is_between_two_places.
        moves = words[Q.DUE_MOVES]
        depth = self.queue.depth()
        return depth.waiting == depth.claimed == depth.deferred == 0 and words[Q.DUE_MOVES] == moves

    def _leave(self) -> None:
        if self._driven is not None:
            self._driven.close()
            self._tell()
        for queue in self._next.values():
            queue.close()
        self.queue.detach()

    def _trouble(self, error: QueueUnavailable | QueueFull) -> float:
        """How long to back off; the sentence is logged when the trouble starts."""
        if not self._trouble_s:
            log.warning("%s; waiting until it works again", error)
        self.queue.renew()
        self._trouble_s = min(self._trouble_s * 2 or 0.1, TROUBLE_S_MAX)
        return self._trouble_s

    # ---- one message

    def _handle(self, slot: Slot, claim: Claim) -> None:
        words, system = slot.words, self.system
        start_ns = system.boottime_ns()
        slot.set_text(0, claim.name)  # WorkerText.MESSAGE
        # ORDER: the counters, then "in hand": whoever finds us dead with a message finds its claim counted too.
        # See test_a_dead_worker_with_a_message_has_its_claim_counted.
        words[CLAIMS] += 1
        words[PROCESS_CLAIMS] += 1
        words[MESSAGE_SINCE_NS] = start_ns
        if not self.leaving.is_asked:
            words[STATE] = BUSY
        observe(words, WAITING, int(waited_s(claim) * 1e9))
        outcome = None
        try:
            called = self._call(claim, start_ns)
            observe(words, PROCESSING, system.boottime_ns() - start_ns)
            outcome = self._settle(claim, called)
        finally:
            if outcome is None:
                self.queue.settled(claim)
        if outcome is not None:
            words[OUTCOME_WORDS[outcome]] += 1
            words[PROCESS_SETTLED] += 1
            if outcome == "done" or outcome == "forwarded":  # noqa: PLR1714
                words[LAST_DONE_MS] = system.wall_ns() // 1_000_000
        if self._limit is not None:
            self._limit.used()
        words[MESSAGE_SINCE_NS] = 0

    def _call(self, claim: Claim, start_ns: int) -> Called:
        if claim.trouble is not None:
            return Called(outcome=Reject(claim.trouble), failure=None, summary=claim.trouble)
        if self.message_size_max is not None and claim.size > self.message_size_max:
            text = f"it has {claim.size} bytes, and max_message_size is {self.message_size_max}"
            return Called(outcome=Reject(text), failure=None, summary=text)
        deadline = None
        if self.time_limit_s is not None:
            deadline = time.monotonic() + self.time_limit_s - (self.system.boottime_ns() - start_ns) / 1e9
        return call(self.handler, Message(claim, self.queue.url, self.consumer.index, deadline, self._on_child))

    def _on_child(self, group: int) -> None:
        self._group = self.consumer.board.worker(self.consumer.worker_slot).words[W.CHILD_GROUP] = group

    def _settle(self, claim: Claim, called: Called) -> str | None:
        """Settle, however long the disk is full; the outcome that counts, or None when we left before."""
        while True:
            try:
                if called is DONE and not self._onward:
                    self.queue.done(claim)
                    outcome = "done"
                else:
                    outcome = self._settle_once(claim, called)
            except ClaimLost as error:
                log.warning("%s: fenced: %s", self.queue.url, error)
                return "fenced"
            except InputGone as error:
                log.warning("%s: %s", self.queue.url, error)
                return "input_gone"
            except (QueueUnavailable, QueueFull) as error:
                if self.leaving.wait(self._trouble(error)) and self._trouble_s >= 1.0:
                    return None  # asked to leave: the keeper gives it back
                continue
            self._trouble_s = 0.0
            return outcome

    def _settle_once(self, claim: Claim, called: Called) -> str:
        queue = self.queue
        match called.outcome:
            case Done() if not self.output or called.outcome is CANCELLED:
                queue.done(claim)
                return "done"
            case Done():
                return self._forward(claim, self.output, None)
            case Retry(after_s):
                return self._retry(claim, after_s, {"reason": "the handler asked for another attempt"})
            case Reject(reason):
                log.warning("%s: %s rejected: %s", queue.url, names.shown(claim.name), reason)
                queue.reject(claim, reason, called.meta)
                return "rejected"
            case Forward(body, target):
                return self._forward(claim, target, _bodies(body))
            case None:
                shown = names.shown(claim.name)
                log.warning("%s: %s failed (attempt %d): %s", queue.url, shown, claim.attempt, called.summary)
                return self._retry(claim, None, {**called.meta, "traceback": called.failure, "error": called.summary})
        raise AssertionError(called.outcome)

    def _forward(self, claim: Claim, target: str, bodies: list[Body] | None) -> str:
        try:
            is_output = bool(target) and target == self.output
            following = self._output_queue() if is_output else self._following(target)
            self.queue.forward(claim, following, bodies)
        except (QueueUnavailable, QueueFull, ClaimLost, InputGone):
            raise
        except OrchestratorError as error:
            log.warning("%s: %s cannot be forwarded: %s", self.queue.url, names.shown(claim.name), error)
            return self._retry(claim, None, {"traceback": str(error)})
        return "forwarded"

    def _retry(self, claim: Claim, after_s: float | None, meta: dict[str, object]) -> str:
        if self.queue.retry(claim, after_s, meta):
            return "retried"
        log.warning("%s: %s goes to errors/ after %d attempts", self.queue.url, names.shown(claim.name), claim.attempt)
        return "rejected"

    def _following(self, target: str) -> Queue:
        """The queue to forward to, opened once; the name of a configured queue, or a URL."""
        if not target:
            raise HandlerError("Forward needs queue=: the name of a configured queue, or a URL")
        url = self.consumer.board.url_of(target) or self.queues.get(target)
        if url is None:
            if "/" not in target and ":" not in target:
                raise HandlerError(f"no queue of this pool is called {target!r}; a path needs a slash (./{target})")
            url = target
        if url not in self._next:
            self._next[url] = self._opened(url, is_onward=target == self._onward)
        return self._next[url]

    def _opened(self, url: str, *, is_onward: bool) -> Queue:
        host = getattr(self.queue, "host", None)
        if not is_onward:
            return open_queue(url, system=self.system, host=host)
        # It is no fault of a message's that the next queue is away, or that the configuration leads back here.
        try:
            found = open_queue(url, system=self.system, host=host)
            is_own = _are_one(found, self.queue)
        except (QueueMissing, OSError) as error:
            raise QueueUnavailable(f"cannot forward to {url}: {error}") from error
        if is_own:
            found.close()
            raise QueueUnavailable(f"{url} is this very queue by another name: hand its messages on to another one")
        return found

    # ---- signs of life

    def _start_beating(self, slot: Slot) -> None:
        words = slot.words
        words[W.LAST_SEEN_NS] = self.system.boottime_ns()
        threading.Thread(target=self._beat, args=(slot,), name="beat", daemon=True).start()

    def _beat(self, slot: Slot) -> None:
        words, is_named = slot.words, False
        # Seldom, and all of a host at one time: many workers that wait must cost nothing.
        allow_late_timers(LATE_S)
        while True:
            time.sleep(WAIT_S if words[W.MESSAGE_SINCE_NS] else REST_S)
            if self.parent is not None and os.getppid() != self.parent:
                if self._group:  # not by the board, where anything may stand
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self._group, signal.SIGKILL)
                os._exit(1)
            words[W.LAST_SEEN_NS] = now_ns = self.system.boottime_ns()
            since_ns = words[W.MESSAGE_SINCE_NS]
            held_s = (now_ns - since_ns) / 1e9 if since_ns else 0.0
            if self.title is not None and (is_named or held_s >= LONG_S):
                is_named = held_s >= LONG_S
                name = slot.text(WorkerText.MESSAGE) or ""
                self.title(f" message={names.shown(name)} {held_s:.0f}s" if is_named else "")


def waited_s(claim: Claim) -> float:
    """How long *claim* waited, seconds: by the filesystem's clock, or for what was moved in by the time in its name."""
    written_s = claim.claimed_at - claim.modified_at
    if written_s <= MOVED_IN_S:
        return written_s
    # By its producer's clock, which may be ahead of the filesystem's, or behind it.
    named_s = claim.claimed_at - claim.enqueued_at
    return named_s if 0 <= named_s < written_s else written_s


def _are_one(first: Queue, second: Queue) -> bool:
    if not (isinstance(first, Claimable) and isinstance(second, Claimable)):
        return False
    return os.path.samefile(first.identity, second.identity)


def _bodies(body: Body | Sequence[Body] | None) -> list[Body] | None:
    if body is None:
        return None
    if isinstance(body, bytes | str | Path):
        return [body]
    return list(body)
