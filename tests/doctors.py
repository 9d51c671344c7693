"""
doctors - what the tests of the doctor share: measuring cut short, a doctor that waits for a peer
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.doctor import examination, speed

ROOT = Path(__file__).parents[1]


def quiet(_: str) -> None:
    """Tell nobody how far it is."""


def hurry(patch: pytest.MonkeyPatch, raced_max: int) -> None:
    """Cut short what is measured for its speed, for no test asks how fast anything is."""
    patch.setattr(speed, "MEASURED_S", 0.002)
    patch.setattr(speed, "COUNTS", (1, 2))
    patch.setattr(speed, "LISTED", 20)
    patch.setattr(examination, "RACED_MAX", raced_max)


def peer(place: Path) -> subprocess.Popen[str]:
    """The command, which waits for another on *place*; what it says comes by its stderr."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "doctor", str(place), "--peer"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
