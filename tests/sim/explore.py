"""
explore - every order in which a few processes can make their calls, depth first

An actor is ordinary code over a simulated process. It stops before each call and each
access to a shared word of the board; whoever goes next is a choice, and so is whether
the call fails, is done and its reply lost, or never comes because the process is dead.
All choices are walked, with two savings that leave nothing out:

- Two ways that lead to equal states (the disk, the board, the clock, and all that each
  actor has seen) are walked on once. Schedules are counted as paths, exactly. Of two
  steps that touch nothing in common only one order is walked: the other one leads to the
  same state, and is counted without being made.
- A call whose things (names, listings, words, see sharing) no other actor ever touches
  in a way that matters makes no difference to anybody, whenever it comes: the actor
  goes straight on. What is touched by two is learnt from some schedules at random, and
  while walking; when that is more than was known, the walk begins again. Whether such a
  call fails, or is never made, is a choice all the same.

A Violation carries its trail, in which every call is a step: replay(scenario, trail)
walks that alone.

Long because: a run, its state and the search over runs are one algorithm.
Source: Godefroid, "Partial-Order Methods" (1996), ch. 4, for calls that commute; the
rest is what explicit-state model checkers do.
See also: kernel, sharing, ledger (what must hold after each step), scenarios.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple, cast

from greenlet import getcurrent, greenlet

from tests.sim.kernel import NAMED, OPENED, Crash, Entries, Process, World
from tests.sim.ledger import Ledger
from tests.sim.sharing import Sharing, Thing, attributes, do_meet, touched

GO, CRASH, LOST, FAIL = "go", "crash", "lost", "fail"
ENOUGH = 10  # schedules in a row that teach nothing
STAYS, GOES_WRONG = 5.0, 0.3  # how likely the same actor goes on, and its call goes wrong: 1 is as likely as any
LOST_ANSWERS = {  # of a call that was done and is repeated by the client: what the server says the second time
    "rename": errno.ENOENT, "rename_noreplace": errno.ENOENT, "unlink": errno.ENOENT, "rmdir": errno.ENOENT,
    "link": errno.EEXIST, "mkdir": errno.EEXIST,
}  # fmt: skip


class Choice(NamedTuple):
    """Actor number *actor* goes on, and how its call goes."""

    actor: int
    how: str = GO


class Violation(AssertionError):
    """Something that must hold does not, after *trail*."""

    def __init__(self, scenario: str, trail: Sequence[Choice], why: str, story: Sequence[str]) -> None:
        steps = [choice.actor if choice.how == GO else tuple(choice) for choice in trail]
        again = f"python -m tests.sim schedules --trail '{steps}' '{scenario}'"
        super().__init__("\n".join([f"{scenario}: {why}", *story, again]))
        self.trail, self.why = tuple(trail), why


class _MoreShared(BaseException):  # whoever catches any Exception goes on with it, as the original dirq does
    """Something turned out to be touched by two actors that was thought to be touched by one."""


@dataclass
class Actor:
    """
    One process of a scenario and what it does.

    Attributes:
        may_crash, may_lose: whether its calls may be its last, and whether their replies may be lost or be EIO.
    """

    name: str
    process: Process
    act: Callable[[], object]
    may_crash: bool = False
    may_lose: bool = False


@dataclass(frozen=True)
class Scenario:
    """
    A small world. *setup* makes it afresh for every run, and must do the same every time.

    Attributes:
        crashes, faults: how many there may be in one schedule.
        finish: what recovers, after all actors have ended, and says what must then hold.
    """

    name: str
    setup: Callable[[], tuple[World, Ledger, Sequence[Actor]]]
    crashes: int = 0
    faults: int = 0
    finish: Callable[[World, Ledger], object] = lambda world, ledger: None


@dataclass
class Report:
    """What was walked. *ends*: the states in which all actors have ended; *runs*: how often a world was made."""

    scenario: str
    states: int = 0
    ends: int = 0
    schedules: int = 0
    runs: int = 0

    def __str__(self) -> str:
        return f"{self.scenario}: {self.schedules:,} schedules, {self.states:,} states, {self.ends:,} ends"


class _Running:
    """An actor in one run: a greenlet that is stopped before its next choice, and what it has seen."""

    def __init__(self, number: int, actor: Actor, tell: bool) -> None:
        self.number, self.actor, self.tell = number, actor, tell
        self.seen, self.count = 0, 0
        self.is_private = False  # it stands before a call that nobody else minds: only it may go on
        self.is_call = False  # and before one that may fail
        self.doing, self.things = "begins", cast("list[Thing]", [])
        self.touched: Callable[[], list[Thing]] | None = None  # what they are now, where that may change
        self.story: list[str] = []
        self.greenlet = greenlet(self._run)

    def _run(self) -> None:
        with contextlib.suppress(Crash):
            self.actor.act()

    @property
    def is_over(self) -> bool:
        return bool(self.greenlet.dead)

    def see(self, what: object, doing: str) -> None:
        self.seen = hash((self.seen, what))
        self.count += 1
        if self.tell:
            self.story.append(f"{self.actor.name:>4} {doing} -> {what}")


class Run:
    """One schedule, as far as it was walked. It is the world's scheduler while it lasts."""

    def __init__(self, scenario: Scenario, sharing: Sharing | None, *, is_to_learn: bool = False) -> None:
        self.scenario, self._sharing, self._is_to_learn, self.has_learnt = scenario, sharing, is_to_learn, False
        self.world, self.ledger, actors = scenario.setup()
        self.choices: list[Choice] = []
        self.calls: list[Choice] = []  # the same, with the calls that were no choice
        self.story: list[str] = []
        self.crashes, self.faults = scenario.crashes, scenario.faults
        self._how = GO
        self._main = getcurrent()
        self._running = [_Running(number, actor, sharing is None) for number, actor in enumerate(actors)]
        self._by_greenlet = {running.greenlet: running for running in self._running}
        self.world.scheduler, self.world.on_word = self, self.word
        for running in self._running:
            self._advance(running)

    # ---- as the scheduler

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """See Scheduler."""
        running = self._by_greenlet.get(getcurrent())
        if running is None:
            return do()
        doing = f"{name} {_said(arguments)}"
        running.touched = None
        if self.world.disk.is_exact and self._sharing is not None:
            running.touched = lambda: self._touched(process, name, arguments)
        how = self._stand(running, doing, self._touched(process, name, arguments), is_call=name in NAMED)
        if running.touched is not None and self._sharing is not None:
            self._matters(self._sharing, running, running.touched())
        try:
            if how == FAIL:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            result = do()
            if how == LOST:
                code = LOST_ANSWERS[name]
                raise OSError(code, os.strerror(code))
        except OSError as error:
            running.see(errno.errorcode[error.errno or 0], doing if how == GO else f"{doing} ({how})")
            raise
        running.see(_hashed(result, is_exact=self.world.disk.is_exact), doing)
        return result

    def _touched(self, process: Process, name: str, arguments: tuple[Any, ...]) -> list[Thing]:
        if name in OPENED and (pipe := process.pipe(arguments[0])) is not None:
            return [(("pipe", self.world.pipes.index(pipe)), name != "unread")]
        things = touched(name, arguments)
        if self.world.disk.is_exact:
            opened = process.inode(arguments[0]) if name in OPENED else None
            things += attributes(name, arguments, self.world.disk, opened)
        return things

    def word(self, what: str, word: tuple[int, int, int], do: Callable[[], int]) -> int:
        """See OnWord."""
        running = self._by_greenlet.get(getcurrent())
        if running is None:
            return do()
        doing = f"{what} word {word}"
        running.touched = None
        self._stand(running, doing, [(word, what == "writes")], is_call=False)
        value = do()
        running.see(value, doing)
        return value

    def _stand(self, running: _Running, doing: str, things: list[Thing], *, is_call: bool) -> str:
        """Stop where there is a choice, until it is made; how the call shall go."""
        if running.actor.process.has_crashed:
            raise Crash
        is_shared = self._sharing is None
        actor = running.actor
        may_crash = self.crashes > 0 and actor.may_crash
        if self._sharing is not None:
            if may_crash:  # and who asks whether it lives would see that
                things.append((("process", actor.process.pid), True))
            is_shared = self._matters(self._sharing, running, things)
        may_go_wrong = may_crash or (self.faults > 0 and actor.may_lose and is_call)
        if not (is_shared or may_go_wrong):
            self.calls.append(Choice(running.number))
            return GO
        running.doing, running.things = doing, things
        running.is_private, running.is_call = not is_shared, is_call
        self._main.switch()
        if self._how == CRASH:
            running.see(CRASH, doing)
            actor.process.has_crashed = True
            raise Crash
        return self._how

    def _matters(self, sharing: Sharing, running: _Running, things: Sequence[Thing]) -> bool:
        """Whether it matters to another; news end this walk, unless they are what it is for."""
        matters, is_new = sharing.touch(running.number, things)
        self.has_learnt = self.has_learnt or is_new
        if is_new and not self._is_to_learn:
            raise _MoreShared
        return matters

    # ---- walking

    def options(self) -> list[Choice]:
        """What may come next; empty at the end."""
        found: list[Choice] = []
        standing = [running for running in self._running if not running.is_over]
        for running in standing:
            if running.is_private:
                standing = [running]
        for running in standing:
            found.append(Choice(running.number))
            if self.crashes and running.actor.may_crash:
                found.append(Choice(running.number, CRASH))
            if self.faults and running.actor.may_lose and running.is_call:
                found.append(Choice(running.number, FAIL))
                if running.doing.partition(" ")[0] in LOST_ANSWERS:
                    found.append(Choice(running.number, LOST))
        return found

    def step(self, choice: Choice) -> None:
        """Let it come. Raises Violation."""
        self.choices.append(choice)
        self.calls.append(choice)
        self.crashes -= choice.how == CRASH
        self.faults -= choice.how in (LOST, FAIL)
        self._how = choice.how
        self._advance(self._running[choice.actor])

    def _advance(self, running: _Running) -> None:
        try:
            running.greenlet.switch()
            self.ledger.check()
        except (Violation, _MoreShared):
            raise
        except Exception as error:
            raise self._violation(f"{type(error).__name__}: {error}") from error
        finally:
            self.story += running.story
            running.story.clear()

    def left(self) -> int:
        """Equal for ends that leave the same behind."""
        return hash((self.world.fingerprint(), self.ledger.fingerprint(), self.ledger.entered()))

    def end(self) -> None:
        """All actors have ended: recover, and look."""
        try:
            with self.world.straight():
                self.scenario.finish(self.world, self.ledger)
        except Exception as error:
            raise self._violation(f"at the end: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """End the actors where they stand, without effect."""
        for running in self._running:
            running.actor.process.has_crashed = True
            if running.greenlet and not running.is_over:
                running.greenlet.throw(Crash)

    def _violation(self, why: str) -> Violation:
        return Violation(self.scenario.name, self.calls, why, self.story)

    def state(self) -> int:
        """Equal for runs that can only go on equally."""
        return hash(
            (
                self.world.fingerprint(),
                self.ledger.fingerprint(),
                self.crashes,
                self.faults,
                tuple([(running.seen, running.doing, running.greenlet.dead) for running in self._running]),
            )
        )

    def things(self) -> list[list[Thing]]:
        """What the next step of each actor touches."""
        return [running.touched() if running.touched else running.things for running in self._running]


@dataclass(slots=True)
class _Node:
    options: list[Choice]  # not walked yet
    things: list[list[Thing]]
    children: dict[Choice, int] = field(default_factory=dict)
    parents: list[tuple[_Node, Choice]] = field(default_factory=list)

    def lead(self, choice: Choice, there: int, node: _Node) -> None:
        """Let *choice* lead to the state *there*."""
        self.children[choice] = there
        node.parents.append((self, choice))

    def known(self, choice: Choice, nodes: dict[int, _Node]) -> int | None:
        """Where *choice* leads, if it was made just before the step that led here, and neither minds the other."""
        if choice.how != GO:
            return None
        for parent, last in self.parents:
            # A step that goes wrong is like no other: how many more may go wrong decides where actors stop.
            if last.how == GO and last.actor != choice.actor and choice in parent.children:
                there = nodes[parent.children[choice]].children.get(last)
                if there is not None and not do_meet(parent.things[last.actor], parent.things[choice.actor]):
                    return there
        return None


def explore(scenario: Scenario, most: int = 100_000) -> Report:
    """Walk all. Raises Violation, told in full; AssertionError where there are more than *most* states."""
    sharing, report = Sharing(), Report(scenario.name)
    try:
        _learn(scenario, sharing, report)
        while True:
            with contextlib.suppress(_MoreShared):
                _walk(scenario, sharing, report, most)
                return report
    except Violation as found:
        replay(scenario, found.trail)
        raise


def _learn(scenario: Scenario, sharing: Sharing, report: Report) -> None:
    """Walk some schedules, taken at random, for what is shared: what is found out only in the walk begins it again."""
    dice = Random(0)  # noqa: S311 - the same schedules each time
    in_vain = 0
    while in_vain < ENOUGH:
        run, last = _started(scenario, sharing, report, is_to_learn=True), -1
        while options := run.options():
            weights = [(STAYS if actor == last else 1.0) * (1.0 if how == GO else GOES_WRONG) for actor, how in options]
            (choice,) = dice.choices(options, weights)
            run.step(choice)
            last = choice.actor
        run.close()
        in_vain = 0 if run.has_learnt else in_vain + 1


def _walk(scenario: Scenario, sharing: Sharing, report: Report, most: int) -> None:
    nodes: dict[int, _Node] = {}
    ends: set[int] = set()
    waiting: list[tuple[tuple[Choice, ...], int]] = []  # a state with options left, and the choices that lead there
    run = _started(scenario, sharing, report)
    root = here = run.state()
    _arrived(run, root, nodes, ends)
    while True:
        while (choice := _next(here, nodes)) is not None:
            node = nodes[here]
            if node.options:
                waiting.append((tuple(run.choices), here))
            run.step(choice)
            there = run.state()
            is_new = there not in nodes
            if is_new:
                _arrived(run, there, nodes, ends)
            node.lead(choice, there, nodes[there])
            if not is_new:
                break
            here = there
            if len(nodes) > most:
                raise AssertionError(f"{scenario.name}: more than {most:,} states; make it smaller")
        run.close()
        while waiting and not _skip(waiting[-1][1], nodes):
            waiting.pop()
        if not waiting:
            report.states, report.schedules = len(nodes), _paths(nodes, root)
            report.ends = sum(not node.children for node in nodes.values())
            return
        choices, here = waiting.pop()
        run = _started(scenario, sharing, report)
        for choice in choices:
            run.step(choice)


def _started(scenario: Scenario, sharing: Sharing, report: Report, *, is_to_learn: bool = False) -> Run:
    report.runs += 1
    return Run(scenario, sharing, is_to_learn=is_to_learn)


def _arrived(run: Run, state: int, nodes: dict[int, _Node], ends: set[int]) -> None:
    nodes[state] = _Node(run.options(), run.things())
    # Who is left to look sees the world and the accounts, and not what the actors had seen.
    if not nodes[state].options and (left := run.left()) not in ends:
        ends.add(left)
        run.end()


def _skip(here: int, nodes: dict[int, _Node]) -> bool:
    """Let each option of *here* lead where it is known to lead; whether others are left, of which the first is next."""
    node = nodes[here]
    while node.options:
        there = node.known(node.options[0], nodes)
        if there is None:
            return True
        node.lead(node.options.pop(0), there, nodes[there])
    return False


def _next(here: int, nodes: dict[int, _Node]) -> Choice | None:
    return nodes[here].options.pop(0) if _skip(here, nodes) else None


def _paths(nodes: dict[int, _Node], root: int) -> int:
    """How many ways lead from *root* to an end."""
    counts: dict[int, int] = {}
    stack = [root]
    while stack:
        state = stack[-1]
        children = nodes[state].children.values()
        missing = [child for child in children if child not in counts]
        if missing:
            stack.extend(missing)
            continue
        counts[stack.pop()] = sum(counts[child] for child in children) or 1
    return counts[root]


def replay(scenario: Scenario, trail: Sequence[int | tuple[int, str]]) -> None:
    """Walk one trail alone, every call a step. Raises the Violation that it leads to, with each step told."""
    run = Run(scenario, None)
    for step in trail:
        run.step(Choice(step) if isinstance(step, int) else Choice(*step))
    if not run.options():
        run.end()
    run.close()


def _said(arguments: tuple[Any, ...]) -> str:
    return " ".join(part for part in arguments if isinstance(part, str))


def _hashed(result: object, *, is_exact: bool) -> object:
    """What of a call's *result* its caller can see, to be compared."""
    if result is None or isinstance(result, int | str | bytes):
        return result
    if isinstance(result, Entries):
        return tuple(entry.name for entry in result)
    if isinstance(result, list):
        return tuple(result)
    if isinstance(result, os.stat_result) and is_exact:
        return (*result[:4], result.st_size, result.st_ctime_ns, result.st_mtime_ns)
    if isinstance(result, os.stat_result):
        ctime_ns = 0 if stat.S_ISDIR(result.st_mode) else result.st_ctime_ns  # a directory's is looked at by nobody
        return (result.st_mode, result.st_ino, result.st_nlink, result.st_size, ctime_ns)
    return str(result)
