"""
config_text - a configuration in force as text, for another process to take over

TOML, for that is what a configuration is made of: whatever a file can say (a date, inf, a name that is not UTF-8)
arrives as it was, and nothing else can. Only what was set is written, so that a default stays one.

Raises: from_text() ValueError for what to_text() has not written.
See also: rereading (hands it over), config_toml.written, tests/unit/test_rereading.py.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel

from orchestrator.config_models import Config, DaemonConfig, MetricsConfig, PoolConfig, QueueConfig
from orchestrator.config_toml import written
from orchestrator.config_values import listen_text


def to_text(config: Config) -> str:
    """*config* as text that from_text() reads."""
    metrics = _set(config.metrics)
    if "listen" in config.metrics.model_fields_set:
        metrics["listen"] = listen_text(config.metrics.listen)
    parts = {
        "pool": _set(config.pool),
        "queues": [_set(queue) for queue in config.queues],
        "metrics": metrics,
        "daemon": _set(config.daemon),
        "paths": [str(path) for path in config.paths],
        "is_named": config.is_named,
        "warnings": list(config.warnings),
    }
    return "".join(f"{key} = {written(value)}\n" for key, value in parts.items())


def from_text(text: str) -> Config:
    """The configuration that to_text() made *text* of. Reads no file."""
    parts = tomllib.loads(text)
    return Config(
        pool=PoolConfig.model_validate(parts["pool"]),
        queues=tuple(QueueConfig.model_validate(queue) for queue in parts["queues"]),
        metrics=MetricsConfig.model_validate(parts["metrics"]),
        daemon=DaemonConfig.model_validate(parts["daemon"]),
        paths=tuple(Path(path) for path in parts["paths"]),
        is_named=parts["is_named"],
        warnings=tuple(parts["warnings"]),
    )


def _set(table: BaseModel) -> dict[str, object]:
    """What was set in *table*. TOML has no word for none, which is what an unset key is anyway."""
    return {key: value for key, value in table.model_dump(exclude_unset=True).items() if value is not None}
