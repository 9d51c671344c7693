"""Unit tests of orchestrator.reading, usage, metrics and status, on real boards in anonymous memory."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from orchestrator import usage as usage_module
from orchestrator.metrics import registry
from orchestrator.reading import BoardReader
from orchestrator.status import is_healthy, is_ready, snapshot
from orchestrator.usage import PSS_INTERVAL_NS, TICK_NS, UsageReader
from workers.board import (
    EXIT_REASONS,
    OUTCOMES,
    PROCESS_WORDS,
    QUEUES_MAX,
    SEQUENCES,
    SLOT_SIZE,
    WORKERS_MAX,
    Board,
    Header,
    HeaderText,
    MasterState,
    Q,
    QueueState,
    QueueText,
    W,
    WorkerState,
    WorkerText,
    observe,
)
from workers.system import System, start_ticks

SECOND = 1_000_000_000
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# Every metric with its type in the text format and the labels of its samples: the promise of METRICS.md.
EXPECTED = {
    "orchestrator_build_info": ("gauge", {"version", "python"}),
    "orchestrator_pool_target_workers": ("gauge", {"queue"}),
    "orchestrator_workers": ("gauge", {"queue", "state"}),
    "orchestrator_worker_info": ("gauge", {"queue", "worker", "pid"}),
    "orchestrator_worker_messages_total": ("counter", {"queue", "worker", "outcome"}),
    "orchestrator_worker_claims_total": ("counter", {"queue", "worker"}),
    "orchestrator_worker_claim_conflicts_total": ("counter", {"queue", "worker"}),
    "orchestrator_worker_busy_seconds_total": ("counter", {"queue", "worker"}),
    "orchestrator_worker_exits_total": ("counter", {"queue", "worker", "reason"}),
    "orchestrator_worker_cpu_seconds_total": ("counter", {"queue", "worker"}),
    "orchestrator_worker_resident_memory_bytes": ("gauge", {"queue", "worker"}),
    "orchestrator_worker_proportional_memory_bytes": ("gauge", {"queue", "worker"}),
    "orchestrator_worker_message_age_seconds": ("gauge", {"queue", "worker"}),
    "orchestrator_worker_last_seen_age_seconds": ("gauge", {"queue", "worker"}),
    "orchestrator_message_processing_seconds": ("histogram", {"queue"}),
    "orchestrator_message_waiting_seconds": ("histogram", {"queue"}),
    "orchestrator_queue_messages": ("gauge", {"queue", "state"}),
    "orchestrator_queue_oldest_message_age_seconds": ("gauge", {"queue", "state"}),
    "orchestrator_queue_measured_timestamp_seconds": ("gauge", {"queue"}),
    "orchestrator_queue_measured_age_seconds": ("gauge", {"queue"}),
    "orchestrator_queue_measure_duration_seconds": ("gauge", {"queue"}),
    "orchestrator_queue_clock_offset_seconds": ("gauge", {"queue"}),
    "orchestrator_reaped_total": ("counter", {"queue", "kind", "reason"}),
    "orchestrator_queue_paused": ("gauge", {"queue"}),
    "orchestrator_queue_output_full": ("gauge", {"queue"}),
    "orchestrator_queue_watch_info": ("gauge", {"queue", "mode"}),
    "orchestrator_queue_feeder_info": ("gauge", {"queue", "pid"}),
    "orchestrator_queue_feeder_last_seen_age_seconds": ("gauge", {"queue"}),
    "orchestrator_queue_feeder_cpu_seconds_total": ("counter", {"queue"}),
    "orchestrator_queue_last_done_timestamp_seconds": ("gauge", {"queue"}),
    "orchestrator_config_last_reload_successful": ("gauge", set()),
    "orchestrator_config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "orchestrator_filesystem_free_bytes": ("gauge", {"queue"}),
    "orchestrator_filesystem_free_inodes": ("gauge", {"queue"}),
}


class Clock(System):
    """A System whose clocks stand still until moved."""

    def __init__(self) -> None:
        self.now_ns = 1000 * SECOND
        self.unix_ns = 1_700_000_000 * SECOND
        self.boottime_ns = lambda: self.now_ns  # type: ignore[method-assign]
        self.wall_ns = lambda: self.unix_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board() -> Board:
    """Two queues, `mail` with two workers and `x"y\\z` with one; nothing has happened yet."""
    made = Board.create()
    for name, count in (("mail", 2), ('x"y\\z', 1)):
        number = made.take_queue(name, f"spool:/var/spool/{name}")
        for index in range(count):
            made.take_worker(number, index)
    return made


def samples(board: Board, reader: BoardReader | None = None) -> Samples:
    text = generate_latest(registry(board, reader)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def openmetrics_samples(board: Board) -> Samples:
    encode, _ = choose_encoder("application/openmetrics-text")
    text = encode(registry(board)).decode()
    assert text.endswith("# EOF\n")
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for f in families for sample in f.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def run_worker(board: Board, number: int, pid: int | None = None, state: WorkerState = WorkerState.IDLE) -> None:
    words = board.worker(number).words
    words[W.PID] = os.getpid() if pid is None else pid
    words[W.START] = start_ticks(int(words[W.PID])) or 0
    words[W.STATE] = state


def overwrite(board: Board, noise: bytes, start: int = 0) -> None:
    """Put *noise* over the raw bytes of the board, as a stray write would."""
    for offset in range(0, len(noise), SLOT_SIZE):
        place, part = (start + offset) // SLOT_SIZE, noise[offset : offset + SLOT_SIZE]
        slot = (
            board.header
            if place == 0
            else board.queues[place - 1]
            if place <= QUEUES_MAX
            else board.worker(place - 1 - QUEUES_MAX)
        )
        words = len(slot.words) * 8
        slot.words.cast("B")[: len(part[:words])] = part[:words]
        slot._texts[: len(part[words:])] = part[words:]


def test_every_metric_is_there_with_its_type_and_labels(board: Board) -> None:
    run_worker(board, 0)
    board.queues[0].words[Q.FEEDER_PID] = os.getpid()
    families = {family.name: family for family in parse_text(generate_latest(registry(board)).decode())}
    found = {}
    for family in families.values():
        name = family.name + ("_total" if family.type == "counter" else "")
        for sample in family.samples:
            found[name] = (family.type, set(sample.labels) - {"le"})
    assert found == EXPECTED


def test_every_series_is_zero_before_the_first_message(board: Board) -> None:
    found = samples(board)
    not_zero = {name for (name, _), number in found.items() if number != 0}
    assert not_zero == {"orchestrator_build_info"}
    for queue, worker in (("mail", "0"), ("mail", "1"), ('x"y\\z', "0")):
        for outcome in OUTCOMES:
            value(found, "orchestrator_worker_messages_total", queue=queue, worker=worker, outcome=outcome)
        for reason in EXIT_REASONS:
            value(found, "orchestrator_worker_exits_total", queue=queue, worker=worker, reason=reason)
    reaped = {
        (dict(labels)["kind"], dict(labels)["reason"])
        for (name, labels) in found
        if name == "orchestrator_reaped_total"
    }
    assert reaped == {
        *(("claim", reason) for reason in ("owner_dead", "lease_lost", "too_old", "crash_limit")),
        ("temporary", "too_old"),
        ("lock", "too_old"),
    }
    for state in ("starting", "idle", "busy", "stopping", "backoff"):
        value(found, "orchestrator_workers", queue="mail", state=state)


def test_a_queue_without_workers_has_its_series() -> None:
    board = Board.create()
    board.take_queue("lonely", "null:")
    found = samples(board)
    assert value(found, "orchestrator_message_processing_seconds_count", queue="lonely") == 0
    assert value(found, "orchestrator_queue_last_done_timestamp_seconds", queue="lonely") == 0


def test_an_empty_board_is_read(board: Board) -> None:
    assert {name for name, _ in samples(Board.create())} == {
        "orchestrator_build_info",
        "orchestrator_config_last_reload_successful",
        "orchestrator_config_last_reload_success_timestamp_seconds",
    }
    assert snapshot(Board.create())["queues"] == []


def test_openmetrics_reads_the_same_numbers(board: Board) -> None:
    run_worker(board, 0, pid=1 << 30)
    board.worker(0).words[W.DONE] = 7
    observe(board.worker(0).words, W.PROCESSING, 3_000_000)
    assert openmetrics_samples(board) == samples(board)


def test_words_become_numbers_in_base_units(board: Board, clock: Clock) -> None:
    words = board.worker(1).words
    run_worker(board, 1, pid=1 << 30, state=WorkerState.BUSY)
    words[W.DONE], words[W.INPUT_GONE], words[W.CLAIMS], words[W.CONFLICTS] = 5, 1, 6, 2
    words[W.EXITS_OOM], words[W.BUSY_NS], words[W.CPU_BASE_NS] = 3, 2_500_000_000, 4 * SECOND
    words[W.MESSAGE_SINCE_NS] = clock.now_ns - 12 * SECOND
    words[W.LAST_SEEN_NS] = clock.now_ns - SECOND // 2
    words[W.LAST_DONE_MS] = 1_699_999_000_500
    board.worker(0).words[W.LAST_DONE_MS] = 1_699_999_000_000
    board.worker(0).words[W.BACKOFF] = 1
    words[W.OUTPUT_FULL] = 1
    queue = board.queues[0].words
    queue[Q.TARGET], queue[Q.WAITING], queue[Q.ERRORS], queue[Q.PAUSED], queue[Q.WATCH] = 2, 9, 4, 1, 2
    queue[Q.OLDEST_WAITING_MS] = 90_000
    queue[Q.MEASURED_MS], queue[Q.MEASURE_NS] = 1_699_999_999_250, 1_500_000
    queue[Q.REAPED_OWNER_DEAD], queue[Q.REAPED_TEMPORARY] = 8, 1
    queue[Q.FREE_BYTES], queue[Q.FREE_INODES] = 1 << 40, 1000
    board.header.words[Header.RELOAD_OK], board.header.words[Header.RELOADED_S] = 1, 1_699_990_000
    found = samples(board, BoardReader(board, clock))
    one = {"queue": "mail", "worker": "1"}
    assert value(found, "orchestrator_worker_messages_total", **one, outcome="done") == 5
    assert value(found, "orchestrator_worker_messages_total", **one, outcome="input_gone") == 1
    assert value(found, "orchestrator_worker_claims_total", **one) == 6
    assert value(found, "orchestrator_worker_claim_conflicts_total", **one) == 2
    assert value(found, "orchestrator_worker_exits_total", **one, reason="oom") == 3
    assert value(found, "orchestrator_worker_busy_seconds_total", **one) == 2.5
    assert value(found, "orchestrator_worker_cpu_seconds_total", **one) == 4
    assert value(found, "orchestrator_worker_message_age_seconds", **one) == 12
    assert value(found, "orchestrator_worker_last_seen_age_seconds", **one) == 0.5
    assert value(found, "orchestrator_worker_info", **one, pid=str(1 << 30)) == 1
    assert value(found, "orchestrator_workers", queue="mail", state="busy") == 1
    assert value(found, "orchestrator_workers", queue="mail", state="backoff") == 1
    assert value(found, "orchestrator_pool_target_workers", queue="mail") == 2
    assert value(found, "orchestrator_queue_messages", queue="mail", state="waiting") == 9
    assert value(found, "orchestrator_queue_messages", queue="mail", state="errors") == 4
    assert value(found, "orchestrator_queue_oldest_message_age_seconds", queue="mail", state="waiting") == 90
    assert value(found, "orchestrator_queue_oldest_message_age_seconds", queue="mail", state="errors") == 0
    assert value(found, "orchestrator_queue_measured_timestamp_seconds", queue="mail") == 1_699_999_999.25
    assert value(found, "orchestrator_queue_measure_duration_seconds", queue="mail") == 0.0015
    assert value(found, "orchestrator_queue_last_done_timestamp_seconds", queue="mail") == 1_699_999_000.5
    assert value(found, "orchestrator_queue_paused", queue="mail") == 1
    assert value(found, "orchestrator_queue_output_full", queue="mail") == 1
    assert value(found, "orchestrator_queue_watch_info", queue="mail", mode="poll") == 1
    assert value(found, "orchestrator_queue_watch_info", queue="mail", mode="inotify") == 0
    assert value(found, "orchestrator_reaped_total", queue="mail", kind="claim", reason="owner_dead") == 8
    assert value(found, "orchestrator_reaped_total", queue="mail", kind="temporary", reason="too_old") == 1
    assert value(found, "orchestrator_filesystem_free_bytes", queue="mail") == 1 << 40
    assert value(found, "orchestrator_filesystem_free_inodes", queue="mail") == 1000
    assert value(found, "orchestrator_config_last_reload_successful") == 1
    assert value(found, "orchestrator_config_last_reload_success_timestamp_seconds") == 1_699_990_000


def test_the_clock_of_the_filesystem_is_compared_with_the_hosts(board: Board, clock: Clock) -> None:
    board.queues[0].words[Q.CLOCK_NS] = clock.unix_ns - 3600 * SECOND - clock.now_ns
    found = samples(board, BoardReader(board, clock))
    assert value(found, "orchestrator_queue_clock_offset_seconds", queue="mail") == 3600


def test_a_feeder_is_a_process_with_its_age_and_its_absence_is_no_series(board: Board, clock: Clock) -> None:
    words = board.queues[0].words
    assert not [name for name, _ in samples(board, BoardReader(board, clock)) if "feeder" in name]
    words[Q.FEEDER_PID], words[Q.FED_NS] = os.getpid(), clock.now_ns - 7 * SECOND
    found = samples(board, BoardReader(board, clock))
    assert value(found, "orchestrator_queue_feeder_info", queue="mail", pid=str(os.getpid())) == 1
    assert value(found, "orchestrator_queue_feeder_last_seen_age_seconds", queue="mail") == 7
    assert value(found, "orchestrator_queue_feeder_cpu_seconds_total", queue="mail") > 0
    assert {dict(labels)["queue"] for name, labels in found if "feeder" in name} == {"mail"}


def test_a_feeder_that_never_gave_a_sign_of_life_is_silent_since_its_start(board: Board) -> None:
    board.queues[0].words[Q.FEEDER_PID] = 1
    (age,) = [
        age for (name, _), age in samples(board).items() if name == "orchestrator_queue_feeder_last_seen_age_seconds"
    ]
    assert age > 1


@pytest.mark.parametrize(
    ("silent_s", "arrivals"), [(1, "inotify"), (12, "workers scan (feeder silent for 12 s)"), (None, "inotify")]
)
def test_status_says_how_arrivals_are_noticed(board: Board, clock: Clock, silent_s: int | None, arrivals: str) -> None:
    words = board.queues[0].words
    words[Q.WATCH] = 1
    if silent_s is not None:
        words[Q.FEEDER_PID], words[Q.FED_NS] = 1 << 30, clock.now_ns - silent_s * SECOND
    (queue, other) = json.loads(json.dumps(snapshot(board, system=clock)))["queues"]
    assert queue["arrivals"] == arrivals
    expected = None if silent_s is None else {"pid": 1 << 30, "last_seen_age_s": silent_s, "cpu_s": 0}
    assert (queue["feeder"], other["feeder"], other["arrivals"]) == (expected, None, "")


def test_histogram_sums_the_workers_of_its_queue_only(board: Board) -> None:
    for number, duration_ns in ((0, 500_000), (0, 40_000_000), (1, 1_500_000), (1, 99_999 * SECOND), (2, 1)):
        observe(board.worker(number).words, W.PROCESSING, duration_ns)
    observe(board.worker(0).words, W.WAITING, SECOND)
    found = samples(board)

    def bucket(le: str) -> float:
        return value(found, "orchestrator_message_processing_seconds_bucket", queue="mail", le=le)

    assert [bucket(le) for le in ("0.001", "0.002", "0.05", "14400.0", "+Inf")] == [1, 2, 3, 3, 4]
    assert value(found, "orchestrator_message_processing_seconds_count", queue="mail") == 4
    total = value(found, "orchestrator_message_processing_seconds_sum", queue="mail")
    assert math.isclose(total, 99_999 + 0.0005 + 0.04 + 0.0015)
    assert value(found, "orchestrator_message_waiting_seconds_count", queue="mail") == 1
    assert value(found, "orchestrator_message_waiting_seconds_sum", queue="mail") == 1


def test_counters_of_a_dead_worker_stay_and_its_gauges_are_zero(board: Board, clock: Clock) -> None:
    place = board.worker(0)
    run_worker(board, 0, state=WorkerState.BUSY)
    place.words[W.DONE], place.words[W.LAST_SEEN_NS], place.words[W.MESSAGE_SINCE_NS] = 5, 1, 1
    place.clear(PROCESS_WORDS, (WorkerText.MESSAGE,))
    found = samples(board, BoardReader(board, clock))
    one = {"queue": "mail", "worker": "0"}
    assert value(found, "orchestrator_worker_messages_total", **one, outcome="done") == 5
    assert value(found, "orchestrator_worker_last_seen_age_seconds", **one) == 0
    assert value(found, "orchestrator_worker_message_age_seconds", **one) == 0
    assert value(found, "orchestrator_worker_resident_memory_bytes", **one) == 0
    assert not [labels for name, labels in found if name == "orchestrator_worker_info"]
    assert value(found, "orchestrator_workers", queue="mail", state="busy") == 0


def test_retired_queue_has_no_series_and_gets_its_counters_back(board: Board) -> None:
    board.worker(0).words[W.DONE] = 5
    board.queues[0].words[Q.USED] = 2
    assert not [labels for _, labels in samples(board) if ("queue", "mail") in labels]
    board.take_queue("mail", "spool:/elsewhere")
    assert value(samples(board), "orchestrator_worker_messages_total", queue="mail", worker="0", outcome="done") == 5


def test_torn_name_is_the_one_read_before(board: Board) -> None:
    reader = BoardReader(board)
    before = samples(board, reader)
    board.queues[0].words[SEQUENCES + QueueText.NAME] |= 1
    assert samples(board, reader).keys() == before.keys()
    assert [queue.name for queue in BoardReader(board).read()] == ['x"y\\z']


def test_name_of_any_bytes_is_printable_in_both_formats() -> None:
    board = Board.create()
    board.take_queue(os.fsdecode(b'a\n\x1b[31m\xff"\\\xc3\xa9'), "null:")
    (queue,) = {dict(labels)["queue"] for _, labels in samples(board) if labels and ("queue" in dict(labels))}
    assert queue == 'a\\n\\x1b[31m\\xff"\\é'
    openmetrics_samples(board)


def test_live_process_is_measured(board: Board) -> None:
    run_worker(board, 0)
    board.worker(0).words[W.CPU_BASE_NS] = 1000 * SECOND
    found = samples(board)
    one = {"queue": "mail", "worker": "0"}
    assert value(found, "orchestrator_worker_cpu_seconds_total", **one) > 1000
    resident = value(found, "orchestrator_worker_resident_memory_bytes", **one)
    assert resident > 1 << 20
    assert value(found, "orchestrator_worker_proportional_memory_bytes", **one) <= resident


def test_process_that_took_the_pid_of_a_worker_is_not_measured(board: Board) -> None:
    run_worker(board, 0)
    board.worker(0).words[W.START] -= 1
    board.worker(0).words[W.CPU_BASE_NS] = SECOND
    measured = UsageReader(System()).read(0, board.worker(0).words)
    assert (measured.cpu_s, measured.resident_bytes, measured.proportional_bytes) == (1, 0, 0)


def test_cpu_time_never_goes_back_when_the_process_ends(board: Board) -> None:
    reader, words = UsageReader(System()), board.worker(0).words
    run_worker(board, 0)
    before = reader.read(0, words).cpu_s
    assert before > 0
    words[W.PID] = 0
    assert reader.read(0, words).cpu_s == before
    words[W.CPU_BASE_NS] = int(before * 1e9) + SECOND
    assert math.isclose(reader.read(0, words).cpu_s, before + 1)


def test_process_that_ends_during_the_reading_is_counted_once(board: Board) -> None:
    """The master adds a base of 1,000 s just before the live process is read."""
    words = board.worker(0).words
    run_worker(board, 0)

    class Ending(System):
        def start_ticks(self, pid: int) -> int | None:
            words[W.CPU_BASE_NS] = 1000 * SECOND
            return super().start_ticks(pid)

    assert UsageReader(Ending()).read(0, words).cpu_s == 1000


def test_proportional_memory_is_read_every_ten_seconds(
    board: Board, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(pid: int) -> int:
        read.append(pid)
        return 4096 * len(read)

    monkeypatch.setattr(usage_module, "proportional_bytes", counted)
    reader, words = UsageReader(clock), board.worker(0).words
    run_worker(board, 0)
    assert [reader.read(0, words).proportional_bytes for _ in range(3)] == [4096] * 3
    clock.now_ns += PSS_INTERVAL_NS
    assert reader.read(0, words).proportional_bytes == 8192
    assert len(read) == 2


def test_memory_that_cannot_be_read_is_zero() -> None:
    assert usage_module.proportional_bytes(1 << 30) == 0


def test_snapshot_is_json_with_the_numbers_of_the_metrics(board: Board, clock: Clock) -> None:
    header = board.header
    header.set_text(HeaderText.NAME, "inbox")
    header.set_text(HeaderText.LISTEN, "127.0.0.1:9464")
    header.words[Header.STATE], header.words[Header.MASTER_PID] = MasterState.RUNNING, 4711
    header.words[Header.STARTED_S] = clock.unix_ns // SECOND - 86400  # the clock was set meanwhile
    header.words[Header.MASTER_START] = (clock.now_ns - 60 * SECOND) // TICK_NS
    header.words[Header.LAST_SEEN_NS] = clock.now_ns - SECOND
    run_worker(board, 0, pid=1 << 30, state=WorkerState.BUSY)
    board.worker(0).words[W.DONE] = 3
    board.worker(0).words[W.MESSAGE_SINCE_NS] = clock.now_ns - 2 * SECOND
    board.worker(0).set_text(WorkerText.MESSAGE, "a\n\udcff")
    found = json.loads(json.dumps(snapshot(board, system=clock)))
    assert (found["name"], found["state"], found["master_pid"], found["uptime_s"]) == ("inbox", "running", 4711, 60)
    assert (found["listen"], found["healthy"], found["ready"]) == ("127.0.0.1:9464", True, False)
    queue = found["queues"][0]
    assert (queue["name"], queue["url"], queue["state"]) == ("mail", "spool:/var/spool/mail", "unknown")
    worker = queue["workers"][0]
    assert (worker["message"], worker["message_age_s"], worker["outcomes"]["done"]) == ("a\\n\\xff", 2, 3)
    assert found["totals"]["outcomes"]["done"] == 3
    assert found["totals"]["workers"]["busy"] == 1


def test_pool_is_healthy_while_its_loop_goes_round() -> None:
    board = Board.create()
    assert not is_healthy(board, 100 * SECOND)[0]
    board.header.words[Header.LAST_SEEN_NS] = 98 * SECOND
    assert is_healthy(board, 100 * SECOND) == (True, "")
    assert is_healthy(board, 98 * SECOND - 1) == (True, ""), "read a moment before the master wrote"
    is_ok, reason = is_healthy(board, 120 * SECOND)
    assert not is_ok
    assert "22 s ago" in reason
    assert not is_healthy(board, SECOND)[0]


def ready(board: Board, clock: Clock) -> None:
    for number in board.queue_numbers():
        words = board.queues[number].words
        words[Q.READY], words[Q.HALF_TIMEOUT_NS] = QueueState.READY, 30 * SECOND
        words[Q.BEAT_NS] = clock.now_ns - SECOND
        run_worker(board, board.worker_numbers(number)[0], pid=1 << 30)
    board.header.words[Header.STATE] = MasterState.RUNNING


def test_pool_is_ready_when_every_queue_can_be_claimed_from(board: Board, clock: Clock) -> None:
    ready(board, clock)
    assert is_ready(board, clock) == (True, [])


def test_queue_that_needs_no_beat_is_ready(board: Board, clock: Clock) -> None:
    ready(board, clock)
    board.queues[0].words[Q.HALF_TIMEOUT_NS] = board.queues[0].words[Q.BEAT_NS] = 0
    assert is_ready(board, clock)[0]


def _refuse(board: Board) -> None:
    board.queues[0].words[Q.READY] = QueueState.REFUSED
    board.queues[0].set_text(QueueText.REASON, "two filesystems\x1b[2J")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_refuse, "queue mail: refused: two filesystems\\x1b[2J"),
        (lambda board: board.queues[0].words.__setitem__(Q.READY, 0), "queue mail: not opened yet"),
        (lambda board: board.queues[0].words.__setitem__(Q.BACKED_OFF, 1), "queue mail: backed off"),
        (lambda board: board.queues[0].words.__setitem__(Q.BEAT_NS, 960 * SECOND), "last beaten 40 s ago"),
        (lambda board: board.queues[0].words.__setitem__(Q.BEAT_NS, 0), "never beaten"),
        (lambda board: board.worker(0).words.__setitem__(W.STATE, WorkerState.STARTING), "no worker is idle or busy"),
        (lambda board: board.header.words.__setitem__(Header.STATE, MasterState.DRAINING), "the pool is draining"),
    ],
)
def test_pool_that_cannot_claim_says_why(
    board: Board, clock: Clock, spoil: Callable[[Board], None], reason: str
) -> None:
    ready(board, clock)
    spoil(board)
    is_fit, reasons = is_ready(board, clock)
    assert not is_fit
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_pool_without_queues_is_not_ready() -> None:
    assert is_ready(Board.create()) == (False, ["no queue is set up yet"])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 32), share=st.sampled_from([0.02, 0.3, 1.0]))
def test_garbage_on_the_board_is_never_raised(seed: int, share: float) -> None:
    """Random bytes over the header, all queues and the first workers, some of them made to look in use."""
    board = Board.create()
    chosen = random.Random(seed)  # noqa: S311 - noise, not a secret
    overwrite(board, chosen.randbytes(SLOT_SIZE * (1 + QUEUES_MAX + 12)))
    for place in board.queues:
        if chosen.random() < share:
            place.words[Q.USED] = 1
            place.words[SEQUENCES + QueueText.NAME] &= ~1
    for number in range(12):
        words = board.worker(number).words
        words[W.USED], words[W.QUEUE] = 1, chosen.randrange(QUEUES_MAX)
        words[W.PID] = chosen.choice([words[W.PID], -1, 0, 1, 1 << 31, 1 << 62, os.getpid()])
    found = samples(board)
    assert all(number >= 0 for (name, _), number in found.items() if not name.endswith("clock_offset_seconds"))
    openmetrics_samples(board)
    json.dumps(snapshot(board))
    is_healthy(board, 1)
    is_ready(board)


def test_two_slots_of_one_index_give_one_series(board: Board) -> None:
    """The parsers refuse or drop a series that is there twice; a damaged board must not take the scrape with it."""
    board.worker(1).words[W.INDEX] = 0
    text = generate_latest(registry(board)).decode()
    lines = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines))


def test_full_board_is_read() -> None:
    board = Board.create()
    for index in range(WORKERS_MAX):
        words = board.worker(index).words
        words[W.QUEUE], words[W.INDEX], words[W.USED] = 0, index, 1
    board.take_queue("mail", "null:")
    assert len([name for name, _ in samples(board) if name == "orchestrator_worker_claims_total"]) == WORKERS_MAX
