"""
test_demo - the newcomer's first command: real workers, one killed on the way, every input accounted for
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import demo
from orchestrator.cli.demo import story
from workers import open_queue

SECONDS = 60


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "demo", *words]


def environment() -> dict[str, str]:
    """What a newcomer has set: nothing of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        env=environment(),
        stdin=subprocess.DEVNULL,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Path:
    """Three files, two of which would have one name, and one of somebody else's package."""
    root = tmp_path / "source"
    (root / "a").mkdir(parents=True)
    (root / "site-packages").mkdir()
    (root / "a" / "b.py").write_text("1")
    (root / "a.b.py").write_text("2")
    (root / "c.py").write_text("")
    (root / "site-packages" / "other.py").write_text("not ours")
    return root


def packed_by_hand(place: Path, source: Path) -> dict[str, str]:
    """Fill, and do what the workers do, in this process; the digests."""
    digests = demo.fill(place, demo.inputs(source))
    with open_queue(str(place / demo.QUEUE)) as queue, open_queue(str(place / demo.NEXT)) as following:
        for listed in list(queue.list("waiting")):
            path = Path(listed.path)
            following.put(demo.pack(path.read_bytes()), name=listed.name, durable=False)
            path.unlink()
    return digests


def test_one_worker_is_killed_and_every_input_is_accounted_for(tmp_path: Path) -> None:
    done = run("--fast", "--json", "--listen", "none", "--messages", "400", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["ok"] is True
    assert found["inputs"] == 400
    assert found["kills"] == len(found["killed"]) == 1
    assert 400 <= found["packed"] == 400 + found["duplicates"] <= 401
    assert found["missing"] == found["damaged"] == found["unknown"] == []
    assert not any(found["left"].values())
    exits = [worker["exits"]["signal"] + worker["exits"]["oom"] for worker in found["run"]["workers"]]
    assert sum(exits) == 1
    assert len(exits) == 4
    # At most one settled message is lost from the counters with a killed worker, and none is counted twice.
    assert found["packed"] - 1 <= found["run"]["outcomes"]["forwarded"] <= found["packed"]
    assert os.listdir(tmp_path) == [], "the demo's directory is removed"


def test_the_paced_demo_says_where_it_is_and_can_be_scraped_meanwhile(tmp_path: Path) -> None:
    """Paced by 0.1 s a message, so that there is a meanwhile: about 4 s."""
    words = command(
        "--listen", "127.0.0.1:0", "--messages", "80", "--workers", "2", "--directory", str(tmp_path), "--keep"
    )
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stderr is not None
        said = ""
        while (address := re.search(r"curl (http://\S+)", said)) is None:
            line = process.stderr.readline()
            assert line, said
            said += line
        with urllib.request.urlopen(address[1], timeout=10) as answer:  # noqa: S310 - the address of our own child
            text = answer.read().decode()
        out, rest = process.communicate(timeout=SECONDS)
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"orchestrator_worker_messages", "orchestrator_queue_messages"} <= families
    assert process.returncode == 0, said + rest
    assert re.search(r"\d+ of 80 done, \d+/s, \d+ s left", rest), rest
    assert "Every one of the 80 inputs is accounted for" in out
    assert "was killed with SIGKILL" in out
    kept = next(tmp_path.glob("orchestrator-demo-*"))
    assert kept.stat().st_mode & 0o077 == 0
    assert str(kept) in out
    assert sum(1 for _ in (kept / "packed" / "incoming").iterdir()) >= 80


def test_what_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = run("--fast", "--listen", "nonsense", "--messages", "5", "--directory", str(tmp_path))
    assert done.returncode == 2
    assert "listen" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_two_files_of_one_name_are_one_input_and_packages_are_none(source: Path) -> None:
    assert sorted(demo.inputs(source)) == ["a.b.py", "c.py"]
    assert len(demo.inputs(source, count_max=1)) == 1


def test_the_standard_library_is_a_thousand_inputs_or_nearly() -> None:
    found = demo.inputs()
    assert len(found) > 300
    assert "json.decoder.py" in found


def test_a_check_of_what_is_whole_is_fine(tmp_path: Path, source: Path) -> None:
    found = demo.check(tmp_path, packed_by_hand(tmp_path, source), kills=1)
    assert found.is_fine
    assert found.packed == found.inputs == 2
    assert "Every one of the 2 inputs" in "\n".join(story(found, [demo.Killed(1, 4242, "c.py")]))


def test_a_check_names_what_is_missing_damaged_unknown_or_left(tmp_path: Path, source: Path) -> None:
    digests = packed_by_hand(tmp_path, source)
    incoming = tmp_path / demo.NEXT / "incoming"
    (incoming / "c.py").unlink()
    (incoming / "a.b.py").write_bytes(demo.pack(b"something else"))
    (incoming / "d.py").write_bytes(b"not packed at all")
    (tmp_path / demo.QUEUE / "pending" / "left").mkdir()
    found = demo.check(tmp_path, digests, kills=1)
    assert not found.is_fine
    assert (found.missing, found.unknown) == (["c.py"], ["d.py"])
    assert found.damaged == ["a.b.py", "d.py"]
    assert found.left["claimed"] == 1
    text = "\n".join(story(found, []))
    for words in ("NOT every one", "1 missing: c.py", "1 unknown: d.py", "2 damaged: a.b.py, d.py", "1 left: claimed"):
        assert words in text


def test_more_duplicates_than_kills_are_not_fine(tmp_path: Path, source: Path) -> None:
    digests = packed_by_hand(tmp_path, source)
    body = (tmp_path / demo.NEXT / "incoming" / "c.py").read_bytes()
    with open_queue(str(tmp_path / demo.NEXT)) as queue:
        queue.enter(body, "c.py")  # type: ignore[attr-defined]  # as a forward enters it
    assert demo.check(tmp_path, digests, kills=1).is_fine
    assert demo.check(tmp_path, digests, kills=1).duplicates == 1
    assert not demo.check(tmp_path, digests, kills=0).is_fine


@pytest.mark.parametrize("body", [b"", b"\0\n\xff", b"x" * 100_000])
def test_what_is_packed_is_unpacked(body: bytes) -> None:
    assert demo.unpack(demo.pack(body))[1] == body


@pytest.mark.parametrize("packed", [b"", b"no line", b"0" * 64 + b"\nno zlib"])
def test_what_was_not_packed_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"sha256|decompressed"):
        demo.unpack(packed)
