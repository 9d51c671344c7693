"""Unit tests of orchestrator.preload: what of a handler is imported already; its imports are in process/test_start."""

from __future__ import annotations

import pytest

from orchestrator.preload import imported


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        ("orchestrator.preload:imported", "orchestrator.preload"),
        ("orchestrator.nowhere.deep:handle", "orchestrator"),
        ("nowhere_to_be_found:handle", None),
        ("nowhere.to.be.found:handle", None),
    ],
)
def test_a_module_or_its_nearest_package_is_imported_already(handler: str, found: str | None) -> None:
    assert imported(handler) == found
