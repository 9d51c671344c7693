"""
config_models - every key of the configuration: its type, default, bounds and meaning

Frozen models, strict: 4.0 is no whole number and an unknown key is refused. The
keys keep their names of the file; durations are seconds as floats here. What the
README's table and `orchestrator config reference` say is taken from these fields.

Raises: pydantic.ValidationError; config_draft words it for a person.
Long because every key is one field with its own sentence.
See also: config (where values come from), config_values (how they are written).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from orchestrator.config_rules import combinations
from orchestrator.config_types import (
    NAME_RULE,
    AccountOrNone,
    ComponentsOrNone,
    Duration,
    DurationOrNone,
    FilePath,
    FilePathOrNone,
    Listen,
    OnwardOrNone,
    Period,
    PeriodOrNone,
    SizeOrNone,
    SpecOrNone,
    StateDirOrNone,
    Text,
    Umask,
    Url,
    matching,
)
from orchestrator.config_values import NAME, QUEUE_NAME, host_name, listen_text, usable_cores
from workers.board import WORKERS_MAX
from workers.queues.base import Order, Settings, Watch
from workers.queues.names import COUNT_MAX, HOST

DURATION, NUMBER, TEXT, SWITCH, WORDS = "duration", "whole number", "text", "true or false", "list of text"
SIZE = "size"
COMPONENTS, TABLE = "list of components", "table"
OUTPUT_LIMIT, LIMIT_MAX = 10_000, 1_000_000_000  # messages
CHOICES: dict[str, tuple[str, ...]] = {"order": get_args(Order), "watch": get_args(Watch)}
COMBINATION = "combination"  # type of the error that several keys make together


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PoolConfig(_Table):
    """[pool]"""

    name: Annotated[str, BeforeValidator(matching(NAME, NAME_RULE + ", a letter or _ first"))] = Field(
        description="the pool's name: one master of that name runs on a host",
        json_schema_extra={"type": TEXT, "default": "base name of the first queue and six hex digits of its URL"},
    )
    host: Annotated[str, BeforeValidator(matching(HOST, NAME_RULE))] = Field(
        default_factory=host_name,
        description="this host's name in leases and claims; two hosts on one queue must differ",
        json_schema_extra={"type": TEXT, "default": "the hostname"},
    )
    run_dir: FilePath = Field(
        description="directory of the board, the pid file and the control socket, on a local filesystem",
        json_schema_extra={
            "type": TEXT,
            "default": "$XDG_RUNTIME_DIR/orchestrator, /run/orchestrator for root, else /tmp/orchestrator-UID "
            "(/dev/shm/orchestrator-run-UID where /tmp is not sticky)",
        },
    )
    stop_timeout: Duration = Field(
        30.0,
        description="how long a drain lets workers finish what is in hand",
        json_schema_extra={"type": DURATION, "default": "30s"},
    )
    term_timeout: Duration = Field(
        5.0,
        description="how long a quick stop leaves for what is in hand before it goes back",
        json_schema_extra={"type": DURATION, "default": "5s"},
    )
    stats_interval: Duration = Field(
        300.0,
        description="how often rates are logged and components get log_statistics; 0s is never",
        json_schema_extra={"type": DURATION, "default": "5m"},
    )
    runlog_dir: FilePath = Field(
        default_factory=lambda data: _below_run_dir(data, "runlog"),
        description="directory of the run logs (orchestrator runlog); a pool without a name of its own that is no"
        " daemon keeps them only where this is set",
        json_schema_extra={"type": TEXT, "default": "RUN_DIR/NAME/runlog"},
    )
    runlog_interval: Duration = Field(
        300.0,
        description="how often the run log is written; 0s is at the end and on USR1 alone",
        json_schema_extra={"type": DURATION, "default": "5m"},
    )
    runlog_keep: int = Field(
        100,
        ge=1,
        le=COUNT_MAX,
        description="how many run logs are kept, the newest ones",
        json_schema_extra={"type": NUMBER, "default": "100"},
    )
    state_file: FilePath = Field(
        default_factory=lambda data: _below_run_dir(data, "state"),
        description="where the state is written on USR2",
        json_schema_extra={"type": TEXT, "default": "RUN_DIR/NAME/state"},
    )
    log_file: FilePathOrNone = Field(
        None,
        description="file that the log is appended to; USR1 opens it anew after a rotation",
        json_schema_extra={"type": TEXT, "default": "none: standard error; of a daemon RUN_DIR/NAME/log"},
    )


def _below_run_dir(data: dict[str, object], name: str) -> Path:
    # A wrong run_dir or name is told of by itself, and nothing is made below it.
    return Path(str(data.get("run_dir", "/")), str(data.get("name", "pool")), name)


class QueueConfig(_Table):
    """[[queue]], one for each queue"""

    name: Annotated[str, BeforeValidator(matching(QUEUE_NAME, NAME_RULE + ", a letter, digit or _ first"))] = Field(
        description="the queue's name in metrics, logs and titles",
        json_schema_extra={"type": TEXT, "default": "base name of its path"},
    )
    url: Url = Field(
        description="where the queue is: a path or a URL; a relative path starts at the file's directory",
        json_schema_extra={"type": TEXT, "default": "required"},
    )
    handler: SpecOrNone = Field(
        None,
        description="MODULE:NAME, called with each message; one of this, components, command and forward",
        json_schema_extra={"type": TEXT, "default": "none"},
    )
    preload: bool = Field(
        False,  # noqa: FBT003
        description="import handler or components before the fork of the workers; new code then needs a restart",
        json_schema_extra={"type": SWITCH, "default": "false"},
    )
    shell: bool = Field(
        False,  # noqa: FBT003
        description="let /bin/sh run command, which is then one text",
        json_schema_extra={"type": SWITCH, "default": "false"},
    )
    command: tuple[Text, ...] | None = Field(
        None,
        description="program and arguments for each message, with {path} {name} {queue} {attempt} {worker} filled in",
        json_schema_extra={"type": WORDS, "default": "none"},
    )
    forward: OnwardOrNone = Field(
        None,
        description="hand each message on, as it is, to this queue: its URL, or its name in this configuration",
        json_schema_extra={"type": TEXT, "default": "none"},
    )
    components: ComponentsOrNone = Field(
        None,
        description='event-driven components in the order of their callbacks, each "MODULE:NAME" or '
        '{ use = "MODULE:NAME", ... } with arguments for its constructor',
        json_schema_extra={"type": COMPONENTS, "default": "none"},
    )
    options: dict[str, object] = Field(
        default_factory=dict,
        description="any keys: what daemon.c(KEY) answers to the components",
        json_schema_extra={"type": TABLE, "default": "empty"},
    )
    event_map: dict[str, str] = Field(
        default_factory=dict,
        description="events of components that are called otherwise: the usual name = the one to use",
        json_schema_extra={"type": TABLE, "default": "empty"},
    )
    output: OnwardOrNone = Field(
        None,
        description="hand what is done on to this queue: its URL, or its name in this configuration; not with forward",
        json_schema_extra={"type": TEXT, "default": "none"},
    )
    output_limit: int | None = Field(
        None,
        ge=0,
        le=LIMIT_MAX,
        description="claim nothing while so many messages wait in the output, or where forward goes; 0 is no limit",
        json_schema_extra={"type": NUMBER, "default": f"{OUTPUT_LIMIT} with output, else none"},
    )
    output_wait: Period = Field(
        10.0,
        description="the longest time between two looks at a full output; they start at 50ms and double",
        json_schema_extra={"type": DURATION, "default": "10s"},
    )
    workers: int = Field(
        default_factory=usable_cores,
        ge=1,
        le=WORKERS_MAX,
        description=f"how many worker processes; at most {WORKERS_MAX} in all queues together",
        json_schema_extra={"type": NUMBER, "default": "usable cores"},
    )
    order: Order = Field(
        "fifo",
        description="fifo by message name, as well as it can be; any is cheaper with a large backlog",
        json_schema_extra={"type": "fifo or any", "default": "fifo"},
    )
    time_limit: PeriodOrNone = Field(
        None,
        description="how long one message may take before its worker is killed",
        json_schema_extra={"type": DURATION, "default": "none"},
    )
    max_message_size: SizeOrNone = Field(
        None,
        description='a larger message, in bytes or as "100M", goes to errors/ unread',
        json_schema_extra={"type": SIZE, "default": "none"},
    )
    max_attempts: int = Field(
        5,
        ge=1,
        le=COUNT_MAX,
        description="at that many failures a message goes to errors/",
        json_schema_extra={"type": NUMBER, "default": "5"},
    )
    retry_backoff: Duration = Field(
        1.0,
        description="delay before the second attempt; doubles with each further one",
        json_schema_extra={"type": DURATION, "default": "1s"},
    )
    retry_backoff_max: Duration = Field(
        300.0,
        description="the longest such delay",
        json_schema_extra={"type": DURATION, "default": "5m"},
    )
    crash_limit: int = Field(
        3,
        ge=1,
        le=COUNT_MAX,
        description="at that many workers dead with it in hand a message goes to errors/",
        json_schema_extra={"type": NUMBER, "default": "3"},
    )
    lease_interval: PeriodOrNone = Field(
        None,
        description="time between two beats of the master's lease; belongs to the queue",
        json_schema_extra={"type": DURATION, "default": "the queue's own (5s for a new one)"},
    )
    lease_timeout: PeriodOrNone = Field(
        None,
        description="another master without a beat for that long loses its claims; three intervals or more",
        json_schema_extra={"type": DURATION, "default": "the queue's own (60s for a new one)"},
    )
    stale_after: PeriodOrNone = Field(
        None,
        description="age at which foreign claims and abandoned files in tmp/ are reaped",
        json_schema_extra={"type": DURATION, "default": "the queue's own (600s for a new one)"},
    )
    state_dir: StateDirOrNone = Field(
        None,
        description="where a protocol keeps counts, retries and errors that it has no place for in its queue",
        json_schema_extra={
            "type": TEXT,
            "default": "none: beside the queue, in NAME.pool/; of an mqueue below /var/lib or ~/.local/state",
        },
    )
    keep_done: DurationOrNone = Field(
        None,
        description="keep finished messages in done/ for that long",
        json_schema_extra={"type": DURATION, "default": "none: they are removed"},
    )
    keep_errors: DurationOrNone = Field(
        None,
        description="remove messages from errors/ after that long",
        json_schema_extra={"type": DURATION, "default": "none: they stay"},
    )
    watch: Watch = Field(
        "auto",
        description="how arrivals are noticed: auto is inotify, and poll on a network filesystem, where what other"
        " hosts put makes no event",
        json_schema_extra={"type": "auto, inotify or poll", "default": "auto"},
    )
    poll_interval: PeriodOrNone = Field(
        None,
        description="the longest pause between two looks while nothing comes, where polling is how it is noticed",
        json_schema_extra={"type": DURATION, "default": "100ms; 1s on a network filesystem"},
    )
    create: bool = Field(
        True,  # noqa: FBT003
        description="make the queue where only its parent directory exists; false for mounted filesystems",
        json_schema_extra={"type": SWITCH, "default": "true"},
    )

    @field_validator("command", mode="before")
    @classmethod
    def _words(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            # shell stands before command, so it is known here unless it is wrong itself.
            if info.data.get("shell") is False:
                raise ValueError(
                    'must be a list such as ["sha256sum", "{path}"]; one text is run by a shell, with shell = true'
                )
            value = (value,)
        words = tuple(value) if isinstance(value, list) else value
        if isinstance(words, tuple):
            if not words or words[0] == "":
                raise ValueError("must name a program first")
            if any(isinstance(word, str) and "\0" in word for word in words):
                raise ValueError("must not hold a NUL character")
        return words

    @model_validator(mode="before")
    @classmethod
    def _limited(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("output") is not None:
            return {"output_limit": OUTPUT_LIMIT} | values
        return values

    @model_validator(mode="after")
    def _together(self) -> QueueConfig:
        found = combinations(self)
        if found:
            raise PydanticCustomError(COMBINATION, "{text}", {"text": "; ".join(f[1] for f in found), "found": found})
        return self

    @property
    def imports(self) -> tuple[str, ...]:
        """Every MODULE:NAME that its workers import."""
        return tuple(one.use for one in self.components or ()) + ((self.handler,) if self.handler else ())

    def settings(self) -> Settings:
        """How the queue is to be opened."""
        return Settings(
            order=self.order,
            max_attempts=self.max_attempts,
            retry_backoff_s=self.retry_backoff,
            retry_backoff_s_max=self.retry_backoff_max,
            crash_limit=self.crash_limit,
            lease_interval_s=self.lease_interval,
            lease_timeout_s=self.lease_timeout,
            stale_after_s=self.stale_after,
            keep_done_s=self.keep_done,
            keep_errors_s=self.keep_errors,
            state_dir=self.state_dir,
            watch=self.watch,
            poll_interval_s=self.poll_interval,
            create=self.create,
        )


class MetricsConfig(_Table):
    """[metrics]"""

    listen: Listen = Field(
        ("127.0.0.1", 9464),
        description='HOST:PORT of /metrics, /healthz, /readyz and /api/status; "none" serves nothing',
        json_schema_extra={"type": TEXT, "default": "127.0.0.1:9464, or a free port when that is taken"},
    )

    @property
    def listen_is_default(self) -> bool:
        """Whether nobody asked for that address, so that another may be taken instead."""
        return "listen" not in self.model_fields_set


class DaemonConfig(_Table):
    """[daemon], of run --daemon alone"""

    chroot_dir: FilePathOrNone = Field(
        None,
        description="new root directory of the daemon; every other path is then one inside",
        json_schema_extra={"type": TEXT, "default": "none"},
    )
    work_dir: FilePath = Field(
        Path("/"),
        description="current directory of the daemon",
        json_schema_extra={"type": TEXT, "default": "/"},
    )
    umask: Umask = Field(
        "022",
        description="file mode bits that are not given, as octal text",
        json_schema_extra={"type": "octal text", "default": "022"},
    )
    user: AccountOrNone = Field(
        None,
        description="name or number of the user that the daemon becomes, with that user's supplementary groups alone",
        json_schema_extra={"type": TEXT, "default": "none: who starts it"},
    )
    group: AccountOrNone = Field(
        None,
        description="name or number of the group that the daemon becomes",
        json_schema_extra={"type": TEXT, "default": "none: the group of user"},
    )
    pid_file: FilePathOrNone = Field(
        None,
        description="file for the daemon's process number, beside the pid in the run directory",
        json_schema_extra={"type": TEXT, "default": "none"},
    )
    stdout: FilePath = Field(
        Path("/dev/null"),
        description="file that standard output is appended to",
        json_schema_extra={"type": TEXT, "default": "/dev/null"},
    )
    stderr: FilePath = Field(
        Path("/dev/null"),
        description="file that standard error is appended to",
        json_schema_extra={"type": TEXT, "default": "/dev/null"},
    )

    @property
    def umask_bits(self) -> int:
        """The umask as os.umask takes it."""
        return int(self.umask, 8)


class Config(BaseModel):
    """
    The whole configuration in force.

    *paths* are the files that were read, in their order. *is_named*: the pool's name was given, not derived.
    *warnings* are sentences for the log, no part of what it means.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    pool: PoolConfig
    queues: tuple[QueueConfig, ...]
    metrics: MetricsConfig
    daemon: DaemonConfig
    paths: tuple[Path, ...] = ()
    is_named: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """Workers of all queues together."""
        return sum(queue.workers for queue in self.queues)


TABLES: dict[str, type[PoolConfig] | type[QueueConfig] | type[MetricsConfig] | type[DaemonConfig]] = {
    "pool": PoolConfig,
    "queue": QueueConfig,
    "metrics": MetricsConfig,
    "daemon": DaemonConfig,
}


class Key(NamedTuple):
    """One key as the reference tells it."""

    table: str
    key: str
    type: str
    default: str
    meaning: str


def reference() -> list[Key]:
    """Every key of the configuration."""
    keys = []
    for table, model in TABLES.items():
        for key, field in model.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict), key  # noqa: S101 - a key without its words
            keys.append(Key(table, key, str(extra["type"]), str(extra["default"]), field.description or ""))
    return keys


def tables(config: Config) -> dict[str, dict[str, object] | list[dict[str, object]]]:
    """*config* as plain values, as JSON and TOML can hold them: durations in seconds, listen as text."""
    queues = [_plain(queue) for queue in config.queues]
    metrics = _plain(config.metrics) | {"listen": listen_text(config.metrics.listen)}
    return {"pool": _plain(config.pool), "queue": queues, "metrics": metrics, "daemon": _plain(config.daemon)}


def _plain(table: BaseModel) -> dict[str, object]:
    values = table.model_dump(mode="python").items()
    return {key: list(value) if isinstance(value, tuple) else _text_of(value) for key, value in values}


def _text_of(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
