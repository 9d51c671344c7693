"""The board: one file, one writer a word, and counters that outlive their process."""

from __future__ import annotations

import mmap
import os

import pytest

from workers.board import BUCKETS_S, SEQUENCES, SIZE, Board, BoardError, Q, QueueText, W, WorkerText, observe


def test_what_one_writes_the_other_reads(tmp_path):
    board = Board.create(tmp_path / "board")
    board.worker(3).words[W.DONE] = 7
    board.worker(3).set_text(WorkerText.MESSAGE, "name \N{PILE OF POO}")
    seen = Board.open(tmp_path / "board")
    assert seen.worker(3).words[W.DONE] == 7
    assert seen.worker(3).text(WorkerText.MESSAGE) == "name \N{PILE OF POO}"


def test_a_board_is_for_its_user_only_and_its_reader_cannot_write(tmp_path):
    Board.create(tmp_path / "board")
    assert os.stat(tmp_path / "board").st_mode & 0o777 == 0o400
    with pytest.raises(TypeError):
        Board.open(tmp_path / "board").header.words[0] = 1


def test_a_new_board_is_a_new_file_so_that_a_survivor_of_the_last_master_does_not_write_into_it(tmp_path):
    old = Board.create(tmp_path / "board")
    new = Board.create(tmp_path / "board")
    old.worker(0).words[W.DONE] = 1
    assert new.worker(0).words[W.DONE] == 0


def test_what_is_no_board_is_refused(tmp_path):
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "other").touch()
    os.truncate(tmp_path / "other", SIZE)
    for name in ("short", "empty", "other"):
        with pytest.raises(BoardError, match=name):
            Board.open(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Board.open(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "x" * 1000, "\udcff\udcfe", "a\nb", "\N{PILE OF POO}" * 100])
def test_a_text_is_cut_at_255_bytes_and_any_name_fits(text):
    slot = Board.create().worker(0)
    slot.set_text(0, text)
    assert slot.text(0) == os.fsdecode(os.fsencode(text)[:255])


def test_a_text_in_the_middle_of_being_written_is_none_and_whole_again_when_written_anew():
    slot = Board.create().worker(0)
    slot.set_text(0, "whole")
    slot.words[SEQUENCES] |= 1  # its writer died here
    assert slot.text(0) is None
    slot.set_text(0, "again")
    assert slot.text(0) == "again"


def test_a_queue_and_a_worker_get_their_old_slots_back():
    board = Board.create()
    one, two = board.take_queue("one", "spool:/1"), board.take_queue("two", "spool:/2")
    worker = board.take_worker(two, 1)
    board.worker(worker).words[W.DONE] = 9
    board.queues[one].words[Q.USED] = 2  # retired by a reload
    assert board.queue_numbers() == [two]
    assert board.take_queue("one", "spool:/other") == one
    assert board.queues[one].text(QueueText.URL) == "spool:/other"
    assert board.take_worker(two, 1) == worker
    assert board.worker(worker).words[W.DONE] == 9
    assert board.worker_numbers(two) == [worker]


def test_more_queues_or_workers_than_there_are_slots_are_refused():
    board = Board.create()
    for number in range(64):
        board.take_queue(str(number), "spool:/x")
    with pytest.raises(BoardError, match="64"):
        board.take_queue("one more", "spool:/x")
    with pytest.raises(BoardError, match="1024"):
        board.worker(1024)


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, 0), (0.001, 0), (0.0011, 1), (3600.0, 17), (1e6, len(BUCKETS_S))]
)
def test_a_duration_is_counted_in_the_bucket_that_holds_it(seconds, bucket):
    words = Board.create().worker(0).words
    observe(words, W.PROCESSING, int(seconds * 1e9))
    histogram = list(words[W.PROCESSING : W.PROCESSING + len(BUCKETS_S) + 2])
    assert histogram[bucket] == 1
    assert sum(histogram[:-1]) == 1
    assert histogram[-1] == int(seconds * 1e9)


def test_a_board_without_a_file_is_shared_with_children():
    board = Board.create()
    pid = os.fork()
    if pid == 0:
        board.worker(0).words[W.DONE] = 5
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.worker(0).words[W.DONE] == 5
    assert isinstance(board._memory, mmap.mmap)
