"""
action - the actions of zendaemon's command line, as it spells them: run --action signal-usr1

Each is one of the commands signal, runlog and config, on the pool that the same line
would run: its name, run directory and run logs come from the configuration.
See also: signal, runlog, config (which do the work), run (the option).
"""

from __future__ import annotations

import json
from collections.abc import Callable

import click

from orchestrator import rundir
from orchestrator.cli import runlog
from orchestrator.cli import signal as signals
from orchestrator.config import Config, tables

Action = Callable[[Config, str | None], None]


def _signalling(which: str) -> Action:
    return lambda config, name: signals.tell(rundir.find(config.pool.run_dir, name), which)


ACTIONS: dict[str, Action] = {
    "config-view": lambda config, _: click.echo(json.dumps(tables(config), indent=4, sort_keys=True, default=str)),
    "runlog-dump": lambda config, _: runlog.show_run(config.pool.runlog_dir, None),
    "runlog-view": lambda config, _: runlog.show_run(config.pool.runlog_dir, None),
    "runlogs-dump": lambda config, _: runlog.list_runs(config.pool.runlog_dir, is_json=True),
    "runlogs-list": lambda config, _: runlog.list_runs(config.pool.runlog_dir, is_json=False),
    "runlogs-evaluate": lambda config, _: runlog.evaluate_runs(config.pool.runlog_dir, is_json=False),
    **{f"signal-{which}": _signalling(which) for which in signals.SAID},
}


def act(action: str, config: Config, *, is_named: bool) -> None:
    """Do *action* to the pool of *config*; to the only one that runs, where nothing named one."""
    name = config.pool.name if is_named else None
    if name is None and action.startswith("run"):
        where = runlog.directory_of(None, config.pool.run_dir, None)
        config = config.model_copy(update={"pool": config.pool.model_copy(update={"runlog_dir": where})})
    ACTIONS[action](config, name)
