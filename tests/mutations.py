"""
mutations - the most important lines, each broken on purpose; the tests named beside it must fail then

    python -m tests.mutations [ID...]

copies the tree to a temporary directory, breaks one line there, runs the named tests on
the copy, says which failed, and puts the line back. SURVIVED is a hole in the tests, and
the exit status is 1. Before that all named tests are run on the sound copy, where they
must pass.

Long because: it is a list.
See also: tests/tidy/test_mutations.py (every line is still there, every test exists), tests/PROOF.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("workers", "orchestrator", "tests", "pyproject.toml", "README.md")
LIMIT_S = 300

PUT, SPOOL, KEEP = "workers/queues/spool_put.py", "workers/queues/spool.py", "workers/queues/spool_keep.py"
OWNERS = "workers/queues/owners.py"
LEASE, DIRECTORY, NAMES = "workers/queues/lease.py", "workers/queues/directory.py", "workers/queues/names.py"
IN_SPOOL, IN_PUT, IN_KEEP = (
    "tests/unit/test_spool.py::",
    "tests/unit/test_spool_put.py::",
    "tests/unit/test_spool_keep.py::",
)
IN_DAEMON = "tests/process/test_daemon.py::"
DDMQ, IN_DDMQ = "workers/queues/ddmq.py", "tests/unit/test_ddmq_pool.py::"
IN_DDMQ_FAULTS = "tests/unit/test_ddmq_faults.py::"
IN_SURVIVORS = "tests/unit/test_survivors.py::"
IN_OUTPUT, IN_PIPER = "tests/unit/test_output.py::", "tests/unit/test_piper.py::"
IN_LEASE, IN_NAMES, IN_CUT = "tests/unit/test_lease.py::", "tests/unit/test_names.py::", "tests/sim/test_power_cut.py::"
A_SCHEDULE = "tests/sim/test_schedules.py::test_no_schedule_loses_repeats_or_strands_a_message"
A_CUT = f"{IN_CUT}test_what_was_promised_is_there_after_a_power_cut_at_any_change"
A_REAL_CUT = f"{IN_CUT}test_what_a_real_process_was_promised_is_there_after_a_power_cut_at_any_call"


class Mutation(NamedTuple):
    """*text* of *file* becomes *broken*; *promise* is what nobody could rely on then, and *tests* must say so."""

    id: str
    file: str
    text: str
    broken: str
    promise: str
    tests: tuple[str, ...]


MUTATIONS = (
    # ---- durable, and never half visible
    Mutation(
        "fsync-of-the-file",
        DIRECTORY,
        "if durable:\n                    self.system.fsync(fd)",
        "if durable:\n                    pass",
        "a put that returned survives a power cut, and no half message is seen",
        (f"{A_CUT}[put-loose]", f"{A_REAL_CUT}[ordered]"),
    ),
    Mutation(
        "fsync-of-incoming",
        PUT,
        "        if durable is not False:\n            self._make_durable(target)\n        return name or temporary",
        "        return name or temporary",
        "a put that returned survives a power cut",
        (f"{A_CUT}[put named-ordered]", f"{A_REAL_CUT}[ordered]"),
    ),
    Mutation(
        "syncfs-before-the-renames",
        PUT,
        "                    self._system.syncfs(fd)\n",
        "                    pass\n",
        "no message of a batch is seen half",
        (f"{A_CUT}[put many with one sync-ordered]",),
    ),
    Mutation(
        "a-batch-is-durable",
        PUT,
        "        if durable:\n            self._make_durable(directory.incoming)\n\n    def _write_all",
        "\n    def _write_all",
        "a batch that returned survives a power cut",
        (f"{A_CUT}[put many-loose]", f"{A_REAL_CUT}[loose]"),
    ),
    Mutation(
        "a-file-moved-in-is-synced",
        PUT,
        "            if durable:\n                system.fsync(fd)",
        "            pass",
        "a file that was moved in survives a power cut whole",
        (f"{A_CUT}[put file not synced-ordered]",),
    ),
    Mutation(
        "a-link-is-durable-before-its-source-goes",
        PUT,
        "        if durable:\n            self._make_durable(directory.incoming)\n        if is_left:\n"
        "            self._remove_source(path, found)\n",
        "        if is_left:\n            self._remove_source(path, found)\n        if durable:\n"
        "            self._make_durable(directory.incoming)\n",
        "a file that is moved in is at its source or a message, whatever happens",
        (f"{A_CUT}[put file named, linked-loose]",),
    ),
    Mutation(
        "a-rejected-message-stays",
        SPOOL,
        "            self.system.fsync_directory(self.directory.errors)\n",
        "",
        "what was said to be rejected is in errors/ after a power cut",
        (f"{A_CUT}[reject-ordered]", f"{A_REAL_CUT}[loose]"),
    ),
    Mutation(
        "a-forwarded-message-stays",
        SPOOL,
        "                    queue.system.fsync_directory(target)\n",
        "",
        "what was said to be forwarded is in the next queue after a power cut, and in no other",
        (f"{A_CUT}[forward-ordered]", f"{A_REAL_CUT}[loose]"),
    ),
    Mutation(
        "put-on-then-done",
        SPOOL,
        "        if len(bodies) == 1 and isinstance(queue, Spool):\n            queue.enter(bodies[0], claim.name)\n"
        "        else:\n            queue.put_many(bodies)\n        self.done(claim)\n",
        "        self.done(claim)\n        if len(bodies) == 1 and isinstance(queue, Spool):\n"
        "            queue.enter(bodies[0], claim.name)\n        else:\n            queue.put_many(bodies)\n",
        "a message that is replaced by others is there until they are",
        (f"{A_CUT}[forward a new body-ordered]", f"{A_CUT}[forward new bodies-loose]"),
    ),
    Mutation(
        "a-poison-message-stays",
        KEEP,
        "            self._system.fsync_directory(self._directory.errors)\n",
        "",
        "a message that was counted as poison is not handled again after a power cut",
        (
            f"{A_CUT}[killed at the limit-ordered]",
            f"{IN_KEEP}test_a_poison_message_is_durable_in_errors_before_it_is_counted",
        ),
    ),
    # ---- never one over another
    Mutation(
        "link-for-a-name",
        PUT,
        'elif self._link(source, f"{target}/{final}", final):\n                self._directory.forget(source)\n',
        "elif self._rename(source, target, final):\n                pass\n",
        "a put with a name replaces no message",
        (f"{IN_SPOOL}test_a_name_that_waits_is_never_replaced",),
    ),
    Mutation(
        "exclusive-create",
        DIRECTORY,
        "CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW",
        "CREATE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW",
        "two writers never share a file",
        (f"{IN_SURVIVORS}test_a_file_that_is_there_is_never_written_into",),
    ),
    Mutation(
        "no-following-of-links",
        SPOOL,
        "OPEN_CLAIM = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC",
        "OPEN_CLAIM = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC",
        "a symbolic link in incoming/ shows no handler a file from elsewhere",
        (f"{IN_SPOOL}test_what_turns_odd_after_it_was_listed_is_neither_followed_nor_waited_for",),
    ),
    Mutation(
        "fresh-token-at-a-claim",
        SPOOL,
        "            token = self.tokens.token(name)\n            target = ",
        "            token = names.parse(file).token or self.tokens.token(name)\n            target = ",
        "whoever lost a claim finds nothing to settle",
        (f"{IN_SPOOL}test_every_claim_and_every_way_back_writes_a_fresh_token",),
    ),
    Mutation(
        "fresh-token-at-a-release",
        SPOOL,
        "file = names.marked(claim.attempt - 1, claim.crashes, self.tokens.token(claim.name), claim.name)",
        "file = names.marked(claim.attempt - 1, claim.crashes, claim.token, claim.name)",
        "no way back leads to a name that was there before",
        (f"{IN_SPOOL}test_every_claim_and_every_way_back_writes_a_fresh_token",),
    ),
    Mutation(
        "fresh-token-at-a-keepers-release",
        KEEP,
        "        token = self._spool.tokens.token(mark.name)\n",
        "        token = mark.token\n",
        "no way back leads to a name that was there before",
        (f"{IN_SURVIVORS}test_what_a_keeper_gives_back_has_a_fresh_token",),
    ),
    Mutation(
        "fresh-token-when-due",
        KEEP,
        "fresh = names.marked(mark.attempts, mark.crashes, self._spool.tokens.token(mark.name), mark.name)\n"
        "            # Counted",
        "fresh = names.marked(mark.attempts, mark.crashes, mark.token, mark.name)\n            # Counted",
        "no way back leads to a name that was there before",
        (f"{IN_SURVIVORS}test_what_is_due_has_a_fresh_token", f"{A_SCHEDULE}[copied_from_deferred, copy]"),
    ),
    Mutation(
        "fresh-token-at-a-requeue",
        SPOOL,
        "fresh = names.marked(0, 0, self.tokens.token(short), short)",
        "fresh = names.marked(0, 0, names.parse(os.path.basename(listed.path)).token, short)",
        "a requeued message is fenced from the settle that is late",
        (f"{IN_SPOOL}test_every_claim_and_every_way_back_writes_a_fresh_token",),
    ),
    Mutation(
        "random-bits-after-a-fork",
        NAMES,
        "if pid != self._pid or counter > COUNTER_MAX:",
        "if not self._random or counter > COUNTER_MAX:",
        "two processes never make one name or token",
        (f"{IN_NAMES}test_tokens_and_names_never_repeat_not_even_after_a_fork_or_a_full_counter",),
    ),
    Mutation(
        "check-digits",
        NAMES,
        'if name not in ("", ".", "..") and found[3][18:] == check(name):',
        'if name not in ("", ".", ".."):',
        "a name that looks like a mark keeps all of itself",
        (f"{IN_NAMES}test_a_look_alike_of_a_mark_is_a_name",),
    ),
    Mutation(
        "a-handlers-file-gets-a-mark",
        SPOOL,
        "        file = names.marked(0, 0, self.tokens.token(name), name)\n"
        "        if self.directory.move(path, self.directory.errors",
        "        file = name\n        if self.directory.move(path, self.directory.errors",
        "two files that handlers left under one name are both kept",
        (f"{IN_SURVIVORS}test_files_that_two_handlers_left_under_one_name_are_both_kept",),
    ),
    # ---- fenced
    Mutation(
        "done-asks-whether-it-was-ours",
        SPOOL,
        "                self._check_ours(claim, is_ours=self.directory.has_removed(error, claim.path))\n",
        "                self.directory.has_removed(error, claim.path)\n",
        "of two who believe to hold a message, one is told that it lost it",
        (f"{IN_SPOOL}test_a_settle_after_the_claim_was_given_to_another_is_fenced", f"{A_SCHEDULE}[late_settle, done]"),
    ),
    Mutation(
        "the-gap-that-is-open",
        SPOOL,
        "return lapses == claim.lapses and self.system.boottime_ns() - beat_ns < self._words[Q.HALF_TIMEOUT_NS]",
        "return lapses == claim.lapses",
        "a settle in a gap that nobody has counted yet is not taken for finished",
        (
            f"{IN_SPOOL}test_done_after_the_input_was_removed_in_a_gap_still_open_is_lost",
            f"{A_SCHEDULE}[lease_lost, done]",
        ),
    ),
    Mutation(
        "time-then-lapses-at-a-settle",
        SPOOL,
        "beat_ns, lapses = self._words[Q.BEAT_NS], self._words[Q.LAPSES]\n        return",
        "lapses, beat_ns = self._words[Q.LAPSES], self._words[Q.BEAT_NS]\n        return",
        "a worker never misses a lapse",
        (f"{IN_LEASE}test_a_worker_never_misses_a_lapse",),
    ),
    Mutation(
        "time-then-lapses-at-a-claim",
        SPOOL,
        "beat_ns, lapses = words[BEAT_NS], words[LAPSES]",
        "lapses, beat_ns = words[LAPSES], words[BEAT_NS]",
        "a worker never misses a lapse",
        (f"{IN_LEASE}test_a_worker_never_misses_a_lapse",),
    ),
    Mutation(
        "lapse-then-time",
        LEASE,
        "        words[Q.LAPSES] += 1\n    words[Q.HALF_TIMEOUT_NS] = half_ns\n    words[Q.BEAT_NS] = before_ns\n",
        "        words[Q.BEAT_NS] = before_ns\n        words[Q.LAPSES] += 1\n"
        "    words[Q.HALF_TIMEOUT_NS] = half_ns\n    words[Q.BEAT_NS] = before_ns\n",
        "a worker never misses a lapse",
        (f"{IN_LEASE}test_a_worker_never_misses_a_lapse",),
    ),
    Mutation(
        "a-young-beat-to-claim",
        SPOOL,
        "if now_ns - beat_ns >= words[HALF_TIMEOUT_NS]:",
        "if False:",
        "nobody claims without a lease",
        (f"{IN_SPOOL}test_no_claim_without_a_young_beat_and_a_fresh_owner_after_a_gap",),
    ),
    Mutation(
        "a-fresh-owner-after-a-lapse",
        SPOOL,
        "if not self._owner or lapses != self._lapses:",
        "if not self._owner:",
        "nobody claims into a directory that others may be emptying",
        (f"{IN_SPOOL}test_no_claim_without_a_young_beat_and_a_fresh_owner_after_a_gap",),
    ),
    # ---- who is alive
    Mutation(
        "board-then-mkdir",
        SPOOL,
        "            self._slot.set_text(WorkerText.OWNER, owner)\n            try:\n"
        "                self.system.mkdir(os.path.join(self.directory.pending, owner), 0o775)\n"
        "            except FileExistsError:\n                continue\n            break\n",
        "            try:\n                self.system.mkdir(os.path.join(self.directory.pending, owner), 0o775)\n"
        "            except FileExistsError:\n                continue\n"
        "            self._slot.set_text(WorkerText.OWNER, owner)\n            break\n",
        "a keeper never takes a live worker of its own for dead",
        (f"{IN_LEASE}test_H32_board_comes_before_mkdir", f"{A_SCHEDULE}[starting_keeper, done]"),
    ),
    Mutation(
        "pending-then-board",
        KEEP,
        "            owners = self._owners()\n            self._release_unlisted(owners, kept)\n",
        '            vars(self).pop("_on_board", None)\n            board = self._on_board()\n'
        "            owners = self._owners()\n            self._on_board = lambda: board\n"
        "            self._release_unlisted(owners, kept)\n",
        "a keeper never takes a live worker of its own for dead",
        (f"{IN_LEASE}test_H32_board_comes_before_mkdir", f"{A_SCHEDULE}[starting_keeper, done]"),
    ),
    Mutation(
        "only-in-the-second-round",
        OWNERS,
        "for directory in unlisted & self._unlisted:",
        "for directory in unlisted:",
        "the cause of a worker's death decides whether a crash is counted",
        (f"{IN_KEEP}test_an_order_that_comes_between_the_two_rounds_decides_the_cause",),
    ),
    Mutation(
        "off-the-board-then-told",
        "orchestrator/running.py",
        "    slot.clear(PROCESS_WORDS, (WorkerText.OWNER, WorkerText.MESSAGE))\n    return dead",
        "    return dead",
        "a dead worker's message goes back even when its keeper dies with the order",
        ("tests/unit/test_running.py::test_H34_a_dead_owner_is_off_the_board_before_the_keeper_is_told",),
    ),
    Mutation(
        "time-of-a-beat",
        LEASE,
        "            note_beat(self._words, before_ns, now_ns, self._half_ns)\n",
        "            note_beat(self._words, now_ns, now_ns, self._half_ns)\n",
        "a lease looks never younger than it is",
        (f"{IN_LEASE}test_a_beat_counts_from_before_its_rename",),
    ),
    Mutation(
        "looks-that-prove-nothing",
        LEASE,
        "            elif is_void:\n",
        "            elif False:\n",
        "an outage of the server costs no live worker its message",
        (
            f"{IN_LEASE}test_a_late_look_sets_the_count_to_zero",
            f"{IN_LEASE}test_a_look_that_took_long_sets_the_count_to_zero",
            f"{IN_LEASE}test_a_look_while_our_own_beat_did_not_succeed_sets_the_count_to_zero",
        ),
    ),
    Mutation(
        "a-number-that-went",
        LEASE,
        "            if sight is None or sight.number != number:\n"
        "                self._sights[master] = Sight(number)\n",
        "            if sight is None:\n                self._sights[master] = Sight(number)\n"
        "            elif sight.number is None or number is None:\n"
        "                sight.number, sight.unchanged = number, sight.unchanged + 1\n"
        "            elif sight.number != number:\n                self._sights[master] = Sight(number)\n",
        "a lease that goes and comes again is not lost",
        (f"{IN_LEASE}test_a_number_that_goes_or_comes_between_two_looks_sets_the_count_to_zero",),
    ),
    Mutation(
        "look-again",
        LEASE,
        "        if number == sight.number:\n            return True\n",
        "        return True\n",
        "a master that beats again before a release keeps its messages",
        (f"{IN_LEASE}test_the_look_again_before_a_release_must_find_what_was_counted", f"{A_SCHEDULE}[looked_again]"),
    ),
    Mutation(
        "only-the-number-that-was-counted",
        LEASE,
        'self._directory.remove(os.path.join(self._directory.leases, f"{master}.{sight.number}"))',
        'self._directory.remove(os.path.join(self._directory.leases, f"{master}.{self.numbers()[master]}"))',
        "the lease of a master that beats again is not taken away",
        (f"{IN_SURVIVORS}test_a_lease_that_was_beaten_since_the_last_look_is_not_removed",),
    ),
    # ---- nothing is left, nothing is lost
    Mutation(
        "look-by-listing",
        DIRECTORY,
        "        if self.is_listed(os.path.join(target_directory, name)):\n            return True\n",
        "",
        "a move whose reply was lost on a network filesystem counts",
        (f"{IN_SURVIVORS}test_a_put_and_a_claim_whose_replies_were_lost_have_happened",),
    ),
    Mutation(
        "an-old-owner-is-emptied",
        SPOOL,
        "        self._leave_owner()\n        while True:\n",
        "        while True:\n",
        "what lies in a worker's old directory goes back at once",
        (f"{IN_SPOOL}test_no_claim_without_a_young_beat_and_a_fresh_owner_after_a_gap",),
    ),
    Mutation(
        "another-queue-is-left-alone",
        KEEP,
        'if "id" not in listing or not self._directory.is_same():',
        'if "id" not in listing:',
        "a queue that was mounted over another is not touched",
        (f"{IN_KEEP}test_another_queue_under_the_path_makes_the_round_fail_and_nothing_move",),
    ),
    Mutation(
        "removed-while-open-stays",
        KEEP,
        "            if file.startswith(names.STILL_OPEN):\n"
        "                continue\n"
        "            self._beat_when_due()",
        "            self._beat_when_due()",
        "a finished message that somebody has open is not brought back",
        (f"{IN_SURVIVORS}test_what_was_removed_while_somebody_had_it_open_is_left_in_its_place",),
    ),
    Mutation(
        "an-unknown-death-counts",
        KEEP,
        'if death.cause in ("died", "unknown"):',
        'if death.cause == "died":',
        "a poison message ends in errors/, also when it takes its host with it",
        (f"{IN_KEEP}test_the_cause_says_what_is_counted",),
    ),
    Mutation(
        "due-is-counted-before-it-is-seen",
        KEEP,
        "            self._slot.words[Q.DUE_MOVES] += 1\n"
        "            path = os.path.join(self._directory.deferred, file)\n"
        "            with self._unless_stuck(path):\n"
        "                if self._directory.move(path, self._directory.incoming, fresh):\n",
        "            path = os.path.join(self._directory.deferred, file)\n"
        "            with self._unless_stuck(path):\n"
        "                if self._directory.move(path, self._directory.incoming, fresh):\n"
        "                    self._slot.words[Q.DUE_MOVES] += 1\n",
        "--until-empty leaves no message behind",
        (f"{IN_KEEP}test_what_is_due_moves_under_a_fresh_token_and_is_counted_before_it_can_be_seen",),
    ),
    Mutation(
        "only-our-own-shape-is-deleted",
        KEEP,
        "if not is_message and not self._system.is_directory(path):",
        "if not self._system.is_directory(path):",
        "another program's file in tmp/ may be the only copy, and is kept",
        (
            f"{IN_KEEP}test_in_tmp_only_our_own_shape_is_deleted_the_rest_goes_to_errors",
            f"{A_CUT}[abandoned in tmp-ordered]",
        ),
    ),
    Mutation(
        "a-producer-that-was-stopped",
        PUT,
        "if self._system.boottime_ns() - written_ns > self._longest_ns:",
        "if False:",
        "a put that returned has entered, and not been reaped before",
        (f"{IN_PUT}test_a_producer_stopped_after_its_last_write_lets_nothing_be_seen",),
    ),
    # ---- ddmq
    Mutation(
        "ddmq-record-before-the-claim",
        DDMQ,
        "See test_a_worker_killed_at_any_call_of_a_claim_loses_nothing.\n"
        "        self.system.pwrite(self._hand, claim_line(waiting, expiry, lasts_s, fraction), 0)\n",
        "See test_a_worker_killed_at_any_call_of_a_claim_loses_nothing.\n",
        "what a killed worker had in hand is found at once",
        (f"{IN_DDMQ}test_a_worker_killed_at_any_call_of_a_claim_loses_nothing",),
    ),
    Mutation(
        "ddmq-release-minds-other-records",
        DDMQ,
        "if other != owner and (theirs := self.hand_of(other)) is not None and found in theirs.work_names():",
        "if False:",
        "a live worker's claim is not given back for a dead one",
        (f"{IN_DDMQ}test_a_worker_killed_before_its_claim_takes_no_claim_of_another_with_it",),
    ),
    Mutation(
        "ddmq-touch-takes-back-what-never-was",
        "workers/queues/ddmq_keep.py",
        "        lost = replace(hand, now=hand.before)\n        self._write(owner, touch_line(lost, lost.now))\n",
        "",
        "who has let a claim pass settles nothing of another's",
        (f"{IN_DDMQ}test_a_touch_that_finds_nothing_leaves_no_trace_of_itself",),
    ),
    Mutation(
        "ddmq-requeue-claims-first",
        "workers/ddmq/claims.py",
        "ours = files.touch(work_name, now if now != claim[0] else now + 1)",
        "ours = work_name",
        "however many clean, what has expired is requeued once",
        (f"{IN_DDMQ_FAULTS}test_Q11_every_order_of_two_cleaners_and_an_ack_keeps_one_message",),
    ),
    Mutation(
        "ddmq-rewrite-makes-no-copy",
        "workers/ddmq/files.py",
        "            self.system.rename_exchange(temporary, path)\n",
        "            self.system.rename(temporary, path)\n            return True\n",
        "what was acknowledged never comes back",
        (f"{IN_DDMQ_FAULTS}test_Q11_a_claim_that_is_gone_is_not_made_again_by_rewriting_it",),
    ),
    # ---- queues of the kernel
    Mutation(
        "mqueue-receipt-first",
        "workers/queues/receive.py",
        "        self._receipt[0] = EMPTY\n"
        "        memory[HEADER : HEADER + length] = memory[self._fill_at : self._fill_at + length]\n",
        "        memory[HEADER : HEADER + length] = memory[self._fill_at : self._fill_at + length]\n"
        "        self._receipt[0] = EMPTY\n",
        "a message is whole, or settled",
        ("tests/unit/test_receive.py::test_a_kill_at_any_store_of_a_settle_loses_nothing",),
    ),
    Mutation(
        "mqueue-on-disk-before-it-is-cleared",
        "workers/queues/mqueue_state.py",
        "        self.system.fsync_directory(os.path.join(self.path, state))\n",
        "",
        "what failed outlives a power cut",
        ("tests/unit/test_mqueue_pool.py::test_what_fails_is_on_disk_before_memory_forgets_it",),
    ),
    Mutation(
        "mqueue-sent-before-it-is-cleared",
        "workers/queues/mqueue.py",
        "        if not self.send(body, priority):\n            self.defer(receive, counts, 0.0)\n",
        "        receive.clear()\n"
        "        if not self.send(body, priority):\n            self.defer(receive, counts, 0.0)\n",
        "a released message is in the kernel or in memory, always",
        ("tests/unit/test_mqueue_pool.py::test_a_kill_at_any_call_of_a_settle_loses_nothing",),
    ),
    # ---- the output, and messages as events
    Mutation(
        "output-reserved-after-the-look",
        "workers/output.py",
        "        words[RESERVED] = share\n        try:\n",
        "        try:\n",
        "never more than the limit and one for each worker wait in an output",
        (f"{IN_OUTPUT}test_no_order_of_two_workers_leaves_more_than_the_limit_and_one_for_each",),
    ),
    Mutation(
        "output-place-given-back-before-the-put",
        "workers/worker.py",
        "        outcome = None\n        try:\n            called = self._call(claim, start_ns)\n",
        "        outcome = None\n        if self._limit is not None:\n            self._limit.used()\n"
        "        try:\n            called = self._call(claim, start_ns)\n",
        "a message on its way to the output has a place there",
        (f"{IN_OUTPUT}test_a_place_is_given_back_when_its_message_is_in_the_output",),
    ),
    Mutation(
        "piper-events-outlive-their-attempt",
        "workers/events.py",
        "        self.forget_timers(subject)\n        return count",
        "        return count",
        "no event of one attempt settles another",
        (f"{IN_PIPER}test_what_an_earlier_attempt_left_behind_does_not_settle_the_next_one",),
    ),
    Mutation(
        "worker-that-was-ended-is-done",
        "workers/worker.py",
        "        self.is_done = driven is not None and driven.is_done()  # by itself: closing it does the same\n",
        "        self.is_done = driven is not None\n",
        "a worker that was ended by a signal is replaced",
        (f"{IN_PIPER}test_a_worker_that_is_asked_to_leave_is_not_done",),
    ),
    # ---- a daemon
    Mutation(
        "daemon-leaves-the-groups-of-root",
        "orchestrator/daemon.py",
        "        os.setgroups(identity.groups)\n",
        "        pass\n",
        "a daemon has no right that its user has not",
        (f"{IN_DAEMON}test_a_daemon_gives_up_its_rights_and_groups_and_keeps_its_files",),
    ),
    Mutation(
        "daemon-imports-before-it-changes-its-root",
        "orchestrator/daemon.py",
        "            import_handlers(config)\n",
        "",
        "a chroot needs nothing but the queue and /proc",
        (f"{IN_DAEMON}test_a_daemon_in_a_chroot_that_has_only_the_queue_and_proc_handles_messages",),
    ),
    Mutation(
        "ready-is-a-worker-that-looks",
        "orchestrator/master.py",
        "if not (one.is_reached or one.pool.is_stopping)]",
        "if not (one.opened or one.pool.is_stopping)]",
        "who launched is told that it is ready when it is, or why it is not",
        (f"{IN_DAEMON}test_a_daemon_that_cannot_start_says_why_once_and_is_gone",),
    ),
    Mutation(
        "launcher-leaves-no-daemon",
        "orchestrator/launch.py",
        "            if not is_wanted:\n",
        "            if False:\n",
        "a launch that failed leaves nothing",
        (f"{IN_DAEMON}test_a_daemon_that_is_not_ready_in_time_is_ended",),
    ),
    Mutation(
        "pid-file-lock-on-what-is-there",
        "orchestrator/pidfile.py",
        "            if self._lock.is_there():\n                return",
        "            if True:\n                return",
        "one living process holds a pid file",
        ("tests/unit/test_pidfile.py::test_a_file_removed_between_open_and_lock_is_made_again",),
    ),
    Mutation(
        "pid-file-lock-apart",
        "orchestrator/pidfile.py",
        "        if mode & 0o077:",
        "        if False:",
        "who may read a pid file keeps no daemon from its start",
        ("tests/unit/test_pidfile.py::test_readers_that_lock_the_file_keep_nobody_out",),
    ),
    Mutation(
        "links-of-others",
        "orchestrator/places.py",
        "    if not is_safe(os.fstat(directory), info):",
        "    if False:",
        "root follows no link that somebody else put there",
        (
            "tests/unit/test_places.py::test_a_link_that_is_followed_does_not_vouch_for_the_next_one",
            "tests/unit/test_logs.py::test_no_link_is_followed_where_others_may_write",
        ),
    ),
    Mutation(
        "log-goes-on-in-a-new-file",
        "orchestrator/logs.py",
        "            if self._has_moved():",
        "            if False:",
        "a log is rotated without a signal",
        ("tests/unit/test_logs.py::test_a_file_that_was_renamed_or_removed_is_made_anew_for_the_next_line",),
    ),
)


def main(ids: Sequence[str]) -> int:
    """Break what is called *ids*, or all; 1 when something survived."""
    chosen = [mutation for mutation in MUTATIONS if mutation.id in ids or not ids]
    if unknown := set(ids) - {mutation.id for mutation in chosen}:
        sys.stderr.write(
            f"there is no {', '.join(sorted(unknown))}; there is {', '.join(one.id for one in MUTATIONS)}\n"
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        tree = Path(place)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tree / name)
        if failed := _failed(tree, sorted({test for mutation in chosen for test in mutation.tests})):
            sys.stderr.write(f"{failed} fails as it is: nothing can be said\n")
            return 2
        return max([_try(tree, mutation) for mutation in chosen], default=0)


def _try(tree: Path, mutation: Mutation) -> int:
    path = tree / mutation.file
    sound = path.read_text(encoding="utf-8")
    assert sound.count(mutation.text) == 1, f"{mutation.id}: its line in {mutation.file} has changed"
    path.write_text(sound.replace(mutation.text, mutation.broken), encoding="utf-8")
    survived = 0
    for test in mutation.tests or [""]:
        start_s = time.monotonic()
        failed = _failed(tree, [test]) if test else ""
        survived |= not failed
        word = failed or f"SURVIVED {test}"
        sys.stdout.write(f"{mutation.id:42} {time.monotonic() - start_s:5.1f} s  {word}\n")
        sys.stdout.flush()
    path.write_text(sound, encoding="utf-8")
    return survived


def _failed(tree: Path, tests: Sequence[str]) -> str:
    """The first of *tests* that fails on *tree*; "" when none does. What cannot be run at all is an error."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
    return found[1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
