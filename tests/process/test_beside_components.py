"""
test_beside_components - components written for the originals, as they are, in a queue of ours

mentat's commiter and sampler, and one of pyzenkit: imported from the installed packages, nothing changed.
"""

from __future__ import annotations

import importlib
import logging

import pytest

from tests.unit.test_piper import Alone
from workers.handler import CANCELLED
from workers.message import Done
from workers.piper import component_of

COMMITER = "mentat.daemon.component.commiter"
SAMPLER = "mentat.daemon.component.sampler"


def installed(*modules: str) -> None:
    """Skip the test where one of *modules* cannot be imported."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever it is that it lacks
            pytest.skip(f"{name} cannot be imported: {error!r}")


def test_mentats_sampler_and_commiter_settle_messages_and_log_their_rates(caplog):
    installed(COMMITER, SAMPLER)
    caplog.set_level(logging.DEBUG)
    parts = [
        component_of(f"{SAMPLER}:SamplerDaemonComponent", {}),
        component_of(f"{COMMITER}:CommiterDaemonComponent", {}),
    ]
    alone = Alone(parts, options={"sampling_policy": "simple", "sampling_limit": 3, "sampling_keys": []})
    outcomes = [alone.handle(b"{}", f"m{number}").outcome for number in range(6)]
    assert outcomes == [Done(), CANCELLED, CANCELLED, Done(), CANCELLED, CANCELLED]
    assert [outcome is CANCELLED for outcome in outcomes] == [False, True, True, False, True, True]
    assert alone.counters == {"cnt_fetched": 6, "cnt_committed": 2, "cnt_canceled": 4}
    alone.piper.daemon.emit("log_statistics")
    assert alone.piper.daemon.failures == 0
    assert "Using sampling limit: 3" in caplog.text
    assert "cnt_commits" in caplog.text
    assert "CommiterDaemonComponent" in str(alone.piper.state()["components"])


def test_a_component_of_pyzenkit_works_between_messages(caplog):
    installed("pyzenkit.zendaemon")
    alone = Alone([component_of("pyzenkit.zendaemon:DemoDaemonComponent", {})])
    for _ in range(3):
        alone.clock.sleep(5)
        alone.piper.turn()
    alone.piper.close()
    assert alone.piper.daemon.failures == 0, caplog.text
