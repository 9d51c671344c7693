"""
doctor - is this mount good enough for a queue, from one host and from several at the same time

Everything that a queue rests on is done here and its outcome looked at: who wins a race, what a
name may be, whose clock makes a time, when another host sees a name. All of it happens in
PATH/.doctor/, which is gone afterwards; a queue at PATH goes on meanwhile.

    facts        what is measured, as values that go to other hosts as JSON
    apart        a process of its own for each probe, with a limit: a hung mount hangs that alone
    place        the directory of one doctor: made, cleared, and what killed ones left
    mount        what is mounted, with which options and how much room
    probes, times, speed   what one host can find out
    races        many want one name: the ways to ask, and what came of it (pure)
    meeting      doctors of several hosts find each other through the directory alone
    together     what they find out together
    examination  all of that in order
    judge, settings, verdict   facts -> findings, advice, the last word (pure)
    report       tables and JSON

Raises: DoctorError where nothing can be examined.
See also: cli.doctor, deploy/OPERATIONS.md, SPOOL.md section 12.
"""

from __future__ import annotations

from workers.errors import OrchestratorError

__all__ = ["DoctorError"]


class DoctorError(OrchestratorError):
    """Nothing can be examined at all; its text says why and what to do."""
