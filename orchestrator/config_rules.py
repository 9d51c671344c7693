"""
config_rules - which keys of a queue go together, and which queues of a pool

    combinations()  of one queue: one way to handle messages, times that fit each other
    targets()       between queues: where output and forward lead
    totals()        what a board has room for
    files()         which file is which: each is written by one

Pure: no file, no queue. Each answers with sentences, and the place to say them at.
See also: config_models (single keys), config (asks).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.config_toml import Fault, nearest
from orchestrator.config_values import WITHOUT_LEASES, duration_text
from workers.board import QUEUES_MAX, WORKERS_MAX
from workers.handlers.shell_text import refusal

if TYPE_CHECKING:
    from orchestrator.config_draft import Draft
    from orchestrator.config_models import DaemonConfig, PoolConfig, QueueConfig

WAYS = ("handler", "command", "components", "forward")  # to handle a message; a queue has one of them
# What a queue that is made new gets, and what unset keys are compared as.
LEASE_INTERVAL_S, LEASE_TIMEOUT_S, STALE_AFTER_S = 5.0, 60.0, 600.0
POLL_S_MIN = 0.001

Found = tuple[tuple[str, ...], str]  # the keys that do not go together, the one to change first; and a sentence


def combinations(queue: QueueConfig) -> list[Found]:
    """What is wrong with the keys of one queue taken together."""
    found: list[Found] = []
    ways = [key for key in WAYS if getattr(queue, key) is not None]
    found.extend(((key, ways[0]), f"there is a {ways[0]} already; keep one of them") for key in ways[1:])
    if queue.forward in (queue.url, queue.name):
        found.append((("forward", "url"), "is this very queue; name another one"))
    found += _output_combinations(queue)
    if not ways:
        found.append(
            (
                WAYS,
                'is missing; set handler = "MODULE:NAME", components = ["MODULE:NAME", ...], '
                'command = ["PROGRAM", ...] or forward = "URL" '
                "(on the command line: --handler MODULE:NAME, or -- PROGRAM {path})",
            )
        )
    if queue.shell and queue.command is None:
        found.append((("shell", "command"), "needs command; a handler is never run by a shell"))
    if queue.shell and queue.command is not None and len(queue.command) != 1:
        found.append((("command", "shell"), "must be one text when shell is true, so that the quoting is the writer's"))
    if queue.command is not None and (why := refusal(queue.command, is_shell=queue.shell)) is not None:
        found.append((("command", "shell"), why))
    if queue.retry_backoff > queue.retry_backoff_max:
        most = duration_text(queue.retry_backoff_max)
        text = f"must not be longer than retry_backoff_max, which is {most}"
        found.append((("retry_backoff", "retry_backoff_max"), text))
    return found + _arrival_combinations(queue) + _lease_combinations(queue)


def _output_combinations(queue: QueueConfig) -> list[Found]:
    found: list[Found] = []
    if queue.output is not None and queue.output in (queue.url, queue.name):
        found.append((("output", "url"), "is this very queue; name another one"))
    if queue.output is not None and queue.forward is not None:
        found.append((("output", "forward"), "goes not together with forward, which hands on too; keep one of them"))
    if queue.output_limit and queue.output is None and queue.forward is None:
        found.append((("output_limit", "output", "forward"), "needs output or forward: there is nothing to look at"))
    if queue.components is None:
        unread = [key for key in ("options", "event_map") if getattr(queue, key)]
        found.extend(((key, "components"), "needs components: nothing else reads it") for key in unread)
    return found


def _arrival_combinations(queue: QueueConfig) -> list[Found]:
    found: list[Found] = []
    scheme = queue.url.partition(":")[0]
    if scheme == "mqueue":
        given = [key for key, unset in (("watch", "auto"), ("poll_interval", None)) if getattr(queue, key) != unset]
        found += [((key, "url"), f"{key} is not possible: the kernel wakes who waits at an mqueue") for key in given]
    if scheme == "set" and queue.watch == "inotify":
        found.append((("watch", "url"), "is not possible: a set is polled"))
    if queue.poll_interval is not None and queue.poll_interval < POLL_S_MIN:
        found.append((("poll_interval",), f"must be {duration_text(POLL_S_MIN)} or longer"))
    return found


def _lease_combinations(queue: QueueConfig) -> list[Found]:
    found: list[Found] = []
    scheme = queue.url.partition(":")[0]
    if scheme in WITHOUT_LEASES:
        none = [key for key in ("lease_interval", "lease_timeout", "keep_done") if getattr(queue, key) is not None]
        return [((key, "url"), f"{key} is not possible: a {scheme} queue has none") for key in none]
    interval_s, interval = _or_new(queue.lease_interval, LEASE_INTERVAL_S)
    timeout_s, timeout = _or_new(queue.lease_timeout, LEASE_TIMEOUT_S)
    stale_s, stale = _or_new(queue.stale_after, STALE_AFTER_S)
    if timeout_s < 3 * interval_s:
        keys = ("lease_timeout", "lease_interval") if queue.lease_timeout else ("lease_interval", "lease_timeout")
        text = f"lease_timeout ({timeout}) must be three times lease_interval ({interval}) or more; set both"
        found.append((keys, text))
    if stale_s <= timeout_s:
        keys = ("stale_after", "lease_timeout") if queue.stale_after else ("lease_timeout", "stale_after")
        found.append((keys, f"stale_after ({stale}) must be longer than lease_timeout ({timeout}); set both"))
    return found


def _or_new(value: float | None, default: float) -> tuple[float, str]:
    """The value to compare, and its words; an unset one is compared as that of a new queue."""
    return (default, duration_text(default) + ", the default") if value is None else (value, duration_text(value))


def targets(queues: Sequence[QueueConfig], drafts: Sequence[Draft]) -> Iterator[Fault]:
    """What is wrong with where *queues* hand on to; each has its draft at the same index."""
    known = {queue.name: queue for queue in queues} | {queue.url: queue for queue in queues if queue.url != "null:"}
    names = [queue.name for queue in queues]
    for queue, draft in zip(queues, drafts, strict=True):
        for key in ("forward", "output"):
            target = getattr(queue, key)
            if target is not None and ":" not in target and target not in known:
                near = nearest(target, names)
                help_ = f"did you mean {near}?" if near else f"for a directory write ./{target}"
                yield draft.fault((key,), f"names no queue of this configuration; {help_}")
    for queue, draft in zip(queues, drafts, strict=True):
        ring = _ring(queue, known)
        if ring and min(ring) == queue.name:
            text = (
                f"leads in a ring ({' to '.join([*ring, ring[0]])}) in which each waits while the next is full:"
                " they can stop for ever; set output_limit = 0 for one of them"
            )
            yield draft.fault(("output" if queue.output else "forward",), text)


def _ring(start: QueueConfig, known: dict[str, QueueConfig]) -> list[str]:
    """The names from *start* back to it along limits, or none. One without a limit always moves, and so all do."""
    path: list[str] = []
    queue: QueueConfig | None = start
    while queue is not None and queue.output_limit and queue.name not in path:
        path.append(queue.name)
        queue = known.get(queue.output or queue.forward or "")
    return path if queue is start else []


def totals(queues: Sequence[QueueConfig], drafts: Sequence[Draft]) -> Iterator[Fault]:
    """Whether there are more queues or workers than a board has room for."""
    if len(drafts) > QUEUES_MAX:
        text = f"a pool has at most {QUEUES_MAX} queues, not {len(drafts)}; run several pools"
        yield drafts[QUEUES_MAX].fault((), text)
    total = sum(queue.workers for queue in queues)
    if total > WORKERS_MAX:
        text = f"all queues together must have at most {WORKERS_MAX} workers, not {total}; run several pools"
        most = max(queues, key=lambda queue: queue.workers).name
        yield next(draft for draft in drafts if draft.values["name"] == most).fault(("workers",), text)


def files(pool: PoolConfig, daemon: DaemonConfig, drafts: Mapping[str, Draft]) -> Iterator[Fault]:
    """Whether two keys name one file, or one names a file of the run directory. stdout and stderr may be one."""
    own = os.path.normpath(pool.run_dir / pool.name)
    taken = {f"{own}/{name}": "is a file of the run directory" for name in ("pid", "board", "control", "states")}
    if pool.log_file is None:
        taken[f"{own}/log"] = "is the log of a daemon"
    taken[os.path.normpath(pool.runlog_dir)] = "is pool.runlog_dir too"
    places = (("pool", "state_file"), ("pool", "log_file"), ("daemon", "stdout"), ("daemon", "stderr"))
    for table, key in (*places, ("daemon", "pid_file")):
        value = getattr(daemon if table == "daemon" else pool, key)
        path = "" if value is None else os.path.normpath(value)
        if not path or path.startswith("/dev/"):
            continue
        why = taken.get(path) or taken.get(os.path.dirname(path) if path.startswith(f"{own}/states/") else "")
        if why is not None and (key != "stderr" or path != os.path.normpath(daemon.stdout)):
            yield drafts[table].fault((key,), f"{why}; name another file")
        for one in (path, f"{path}.lock") if key == "pid_file" else (path,):
            taken.setdefault(one, f"is {table}.{key} too")
