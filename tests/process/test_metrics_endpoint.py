"""test_metrics_endpoint - what a scraper gets of a real pool, from before its first message on"""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser

from tests.process.pools import HANDLERS, Pools, Series, drop, make_queue
from workers.board import BUCKETS_S, EXIT_REASONS, OUTCOMES

BY_QUEUE = {
    "orchestrator_pool_target_workers",
    "orchestrator_queue_measured_timestamp_seconds",
    "orchestrator_queue_measured_age_seconds",
    "orchestrator_queue_measure_duration_seconds",
    "orchestrator_queue_clock_offset_seconds",
    "orchestrator_queue_paused",
    "orchestrator_queue_output_full",
    "orchestrator_queue_feeder_last_seen_age_seconds",
    "orchestrator_queue_feeder_cpu_seconds_total",
    "orchestrator_queue_last_done_timestamp_seconds",
    "orchestrator_filesystem_free_bytes",
    "orchestrator_filesystem_free_inodes",
    *(
        f"orchestrator_message_{which}_seconds_{part}"
        for which in ("processing", "waiting")
        for part in ("count", "sum")
    ),
}
BY_WORKER = {
    "orchestrator_worker_claims_total",
    "orchestrator_worker_claim_conflicts_total",
    "orchestrator_worker_busy_seconds_total",
    "orchestrator_worker_cpu_seconds_total",
    "orchestrator_worker_resident_memory_bytes",
    "orchestrator_worker_proportional_memory_bytes",
    "orchestrator_worker_message_age_seconds",
    "orchestrator_worker_last_seen_age_seconds",
}
STATES = {
    "orchestrator_workers": ("starting", "idle", "busy", "stopping", "backoff"),
    "orchestrator_queue_messages": ("waiting", "claimed", "deferred", "errors"),
    "orchestrator_queue_oldest_message_age_seconds": ("waiting", "claimed", "deferred", "errors"),
}
REAPED = (
    ("claim", "owner_dead"), ("claim", "lease_lost"), ("claim", "too_old"), ("claim", "crash_limit"),
    ("temporary", "too_old"),
)  # fmt: skip


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def expected(queue: str, workers: int) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Every series of one queue but worker_info, whose pids nobody knows."""
    found = {key(name, queue=queue) for name in BY_QUEUE}
    found |= {key(name, queue=queue, state=state) for name, states in STATES.items() for state in states}
    found |= {key("orchestrator_reaped_total", queue=queue, kind=kind, reason=reason) for kind, reason in REAPED}
    found |= {key("orchestrator_queue_watch_info", queue=queue, mode=mode) for mode in ("inotify", "poll")}
    for bound in (*(str(bound) for bound in BUCKETS_S), "+Inf"):
        found.add(key("orchestrator_message_processing_seconds_bucket", queue=queue, le=bound))
        found.add(key("orchestrator_message_waiting_seconds_bucket", queue=queue, le=bound))
    for worker in map(str, range(workers)):
        found |= {key(name, queue=queue, worker=worker) for name in BY_WORKER}
        found |= {
            key("orchestrator_worker_messages_total", queue=queue, worker=worker, outcome=outcome)
            for outcome in OUTCOMES
        }
        found |= {
            key("orchestrator_worker_exits_total", queue=queue, worker=worker, reason=reason) for reason in EXIT_REASONS
        }
    return found


def rising(samples: Series) -> Series:
    """The counters and histograms of messages: all that must be 0 before the first one."""
    return {
        key: value
        for key, value in samples.items()
        if key[0].endswith(("_total", "_bucket", "_count", "_sum")) and not key[0].endswith("_cpu_seconds_total")
    }


def test_every_series_is_there_with_0_before_the_first_message(pools: Pools, queue: Path) -> None:
    words = (str(queue), "--workers", "3", "--handler", f"{HANDLERS}:answer")
    pool = pools.start(*words, listen="127.0.0.1:0").ready()
    before = pool.scrape()
    assert expected("queue", 3) <= set(before)
    assert set(rising(before).values()) == {0}
    assert before[key("orchestrator_config_last_reload_successful")] == 1
    infos = [labels for name, labels in before if name == "orchestrator_worker_info"]
    assert sorted(int(dict(labels)["pid"]) for labels in infos) == sorted(pool.pids)

    make_queue(queue).put_many([b"x", b"reject", b"x"])
    pool.until(lambda: pool.outcome("done") == 2 and pool.outcome("rejected") == 1)
    pool.until(lambda: pool.scrape()[key("orchestrator_queue_messages", queue="queue", state="errors")] == 1)
    after = pool.scrape()
    assert set(after) == set(before)
    assert after[key("orchestrator_message_processing_seconds_count", queue="queue")] == 3
    assert sum(value for (name, _), value in after.items() if name == "orchestrator_worker_messages_total") == 3
    assert pool.end(signal.SIGINT) == 0


def test_openmetrics_is_served_to_who_asks_for_it(pools: Pools, queue: Path) -> None:
    words = (str(queue), "--workers", "1", "--handler", f"{HANDLERS}:answer")
    pool = pools.start(*words, listen="127.0.0.1:0").ready()
    connection = http.client.HTTPConnection(pool.status["listen"], timeout=10)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        answer = connection.getresponse()
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        parse: Callable[[str], Iterable[Metric]] = parser.text_string_to_metric_families
        families = {family.name for family in parse(answer.read().decode())}
    finally:
        connection.close()
    assert {"orchestrator_build", "orchestrator_worker_messages", "orchestrator_message_processing_seconds"} <= families
    assert pool.end() == 0


def test_the_probes_and_the_status_say_what_the_pool_does(pools: Pools, queue: Path) -> None:
    words = (str(queue), "--workers", "1", "--handler", f"{HANDLERS}:hold")
    pools.hold.touch()
    pool = pools.start(*words, listen="127.0.0.1:0").ready()
    pool.until(lambda: pool.get("/healthz")[0] == 200)
    assert pool.get("/readyz")[0] == 200
    drop(queue, "held", b"x")
    pool.until(lambda: pool.busy)
    status = json.loads(pool.get("/api/status")[1])
    assert status["state"] == "running"
    assert status["master_pid"] == pool.process.pid
    assert status["queues"][0]["workers"][0]["message"] == "held"
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.get("/readyz")[0] == 503)
    assert "the pool is draining" in pool.get("/readyz")[1]
    pools.hold.unlink()
    assert pool.wait(15) == 0


def test_the_endpoint_answers_while_the_queue_and_the_master_do_not(pools: Pools, queue: Path) -> None:
    """Keeper, workers and master are stopped: a scrape is served all the same, and /healthz says what is wrong."""
    words = (str(queue), "--workers", "1", "--handler", f"{HANDLERS}:answer")
    pool = pools.start(*words, listen="127.0.0.1:0").ready()
    pools.seen += pool.everyone()
    pool.until(lambda: pool.get("/healthz")[0] == 200)
    pool.send(signal.SIGSTOP)
    assert pool.scrape()
    pool.until(lambda: pool.get("/healthz")[0] == 503)
    pool.send(signal.SIGCONT)
    pool.until(lambda: pool.get("/healthz")[0] == 200)
    assert pool.end() == 0


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "/metrics/../../etc/passwd"])
def test_no_file_is_served(pools: Pools, queue: Path, path: str) -> None:
    words = (str(queue), "--workers", "1", "--handler", f"{HANDLERS}:answer")
    pool = pools.start(*words, listen="127.0.0.1:0").ready()
    assert pool.get(path)[0] == 404
    assert pool.end() == 0
