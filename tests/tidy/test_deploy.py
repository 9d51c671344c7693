"""
test_deploy - what is in deploy/ is accepted by the programs that will read it

promtool and systemd-analyze are asked themselves; where one is missing the test
skips and says so (.ci/run installs both). Metric names in the alerts are compared
with what the exporter serves.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.metrics import registry
from workers.board import Board, Q

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def program(name: str, package: str) -> str:
    """The path of *name*, or skip with the Debian package that has it."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return found


def output_of(*command: str, cwd: Path = ROOT) -> tuple[int, str]:
    """Exit code, and stdout and stderr together."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout


def unit_text() -> str:
    return (DEPLOY / "orchestrator@.service").read_text(encoding="utf-8")


def test_systemd_finds_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    """The program of ExecStart is not installed at that place here, so a copy of the unit names one that is."""
    analyze = program("systemd-analyze", "systemd")
    text, count = re.subn(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", unit_text())
    assert count == 1
    (tmp_path / "orchestrator@.service").write_text(text, encoding="utf-8")
    instance = tmp_path / "orchestrator@mail.service"
    instance.symlink_to(tmp_path / "orchestrator@.service")
    code, output = output_of(analyze, "verify", "--man=no", str(instance))
    assert (code, output) == (0, "")


def test_unit_starts_the_pool_of_its_instance_and_reloads_it_by_hup() -> None:
    lines = unit_text().splitlines()
    for line in (
        "Type=simple",
        "ExecStart=/opt/spool-orchestrator/bin/orchestrator run --config /etc/orchestrator/%i.toml",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        "NoNewPrivileges=yes",
        "OOMPolicy=continue",
    ):
        assert line in lines, line


def test_promtool_accepts_the_scrape_configuration_and_its_alerts() -> None:
    code, output = output_of(program("promtool", "prometheus"), "check", "config", "prometheus.yml", cwd=DEPLOY)
    assert code == 0, output
    assert "1 rule files found" in output, output


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool = program("promtool", "prometheus")
    code, output = output_of(promtool, "test", "rules", "prometheus-rules-test.yml", cwd=DEPLOY)
    assert code == 0, output


def test_alerts_use_only_metrics_and_labels_that_the_exporter_serves() -> None:
    board = Board.create()
    number = board.take_queue("q", "spool:/tmp/q")
    board.take_worker(number, 0)
    board.queues[number].words[Q.FEEDER_PID] = os.getpid()
    served: dict[str, set[str]] = {}
    for family in registry(board).collect():
        for sample in family.samples:
            served.setdefault(sample.name, set()).update(sample.labels)
    for file in ("prometheus-rules.yml", "prometheus-rules-test.yml"):
        text = (DEPLOY / file).read_text(encoding="utf-8")
        used = re.findall(r"\b(orchestrator_[a-z_]+)(?:\{([^}]*)\})?", text)
        assert used, file
        for metric, selector in used:
            assert metric in served, f"{file}: {metric} is served by nobody"
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector)) - {"job", "instance"}
            assert labels <= served[metric], f"{file}: {metric} has no label {labels - served[metric]}"


def test_ci_run_is_an_executable_bash_script_without_faults() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert output_of(program("bash", "bash"), "-n", str(script)) == (0, "")
