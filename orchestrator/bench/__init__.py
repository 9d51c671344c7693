"""
bench - what this library costs on this machine and filesystem, beside the bare loop and every peer that is installed

The bare loop is the least that a consumer can do: list, then for each message rename into a
directory of its own, open, read, close, unlink. Putting: open O_EXCL in tmp/, write, close,
rename. Rates alone say more of the machine than of us, so everything is divided by what
was measured in the same round, and the order of the measurements turns from round to round.

    measure      one figure: a value for each round, and its base
    crew         processes that start together
    subject      what can be measured: bare (Python and C), ours, pool, peers
    rounds       the suites throughput, workers and backlog
    calls        system calls a message
    life, durable, network, wakeup, dirq, ddmq   the other suites, one module each
    targets      what is wanted, and whether it was reached
    report, picture   tables, JSON, SVG

Raises: BenchError when a measurement is none (a process died, messages were left).
Limits: Linux; main thread only, for it forks. Nothing is synced, except in suite durable.
See also: cli.bench.
"""

from __future__ import annotations

from orchestrator.bench.measure import BenchError

__all__ = ["BenchError"]
