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

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from orchestrator.config_values import (
    NAME,
    QUEUE_NAME,
    WITHOUT_LEASES,
    absolute_url,
    duration_text,
    host_name,
    listen_text,
    parse_duration,
    parse_listen,
    shown,
    usable_cores,
)
from workers.board import WORKERS_MAX
from workers.queues.base import Order, Settings
from workers.queues.names import COUNT_MAX, HOST

DURATION, NUMBER, TEXT, SWITCH, WORDS = "duration", "whole number", "text", "true or false", "list of text"
COMBINATION = "combination"  # type of the error that several keys make together

# What a queue that is made new gets, and what unset keys are compared as.
LEASE_INTERVAL_S, LEASE_TIMEOUT_S, STALE_AFTER_S = 5.0, 60.0, 600.0

_HANDLER = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*\Z")


def _duration(value: object) -> object:
    return None if value is None else parse_duration(value)


def _period(value: object) -> object:
    if value is not None and parse_duration(value) == 0:
        raise ValueError(f"must be a duration longer than 0, not {shown(value)}")
    return _duration(value)


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, str) and not pattern.match(value):
            raise ValueError(f"must be {expected}, not {shown(value)}")
        return value

    return check


def _handler(value: object) -> object:
    if isinstance(value, str) and not _HANDLER.match(value):
        raise ValueError(f'must be MODULE:NAME such as "shop.thumbnails:handle", not {shown(value)}')
    return value


def _text(value: object) -> str:
    """Any text: pydantic's own check refuses the surrogates that stand for undecodable bytes of a path."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {shown(value)}")
    return value


def _url(value: object) -> str:
    return absolute_url(_text(value), None)


def _path(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError(f"must be the path of a directory, not {shown(value)}")
    return Path(value) if isinstance(value, str) else value


def _forward(value: object) -> object:
    """A queue's name as it is, a URL made absolute: what has a slash or a colon is one."""
    if not isinstance(value, str):
        return value
    if "/" in value or ":" in value:
        return absolute_url(value, None)
    if not QUEUE_NAME.match(value):
        raise ValueError(f"must be the URL of a queue, or the name of one of this configuration, not {shown(value)}")
    return value


def _state_dir(value: object) -> object:
    if isinstance(value, str) and (not value.startswith("/") or "\0" in value):
        raise ValueError(f"must be the absolute path of a directory, not {shown(value)}")
    return value


def _listen(value: object) -> object:
    return value if value is None or isinstance(value, tuple) else parse_listen(value)


Duration = Annotated[float, BeforeValidator(_duration)]
DurationOrNone = Annotated[float | None, BeforeValidator(_duration)]
Period = Annotated[float, BeforeValidator(_period)]
PeriodOrNone = Annotated[float | None, BeforeValidator(_period)]
NAME_RULE = "1 to 64 of the characters A-Z a-z 0-9 . _ -"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PoolConfig(_Table):
    """[pool]"""

    name: Annotated[str, BeforeValidator(_matching(NAME, NAME_RULE + ", a letter or _ first"))] = Field(
        description="the pool's name: one master of that name runs on a host",
        json_schema_extra={"type": TEXT, "default": "base name of the first queue and six hex digits of its URL"},
    )
    host: Annotated[str, BeforeValidator(_matching(HOST, NAME_RULE))] = Field(
        default_factory=host_name,
        description="this host's name in leases and claims; two hosts on one queue must differ",
        json_schema_extra={"type": TEXT, "default": "the hostname"},
    )
    run_dir: Annotated[Path, BeforeValidator(_path)] = Field(
        description="directory of the board, the pid file and the control socket, on a local filesystem",
        json_schema_extra={
            "type": TEXT,
            "default": "$XDG_RUNTIME_DIR/orchestrator, /run/orchestrator for root, else /tmp/orchestrator-UID",
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


class QueueConfig(_Table):
    """[[queue]], one for each queue"""

    name: Annotated[str, BeforeValidator(_matching(QUEUE_NAME, NAME_RULE + ", a letter, digit or _ first"))] = Field(
        description="the queue's name in metrics, logs and titles",
        json_schema_extra={"type": TEXT, "default": "base name of its path"},
    )
    url: Annotated[str, PlainValidator(_url)] = Field(
        description="where the queue is: a path or a URL; a relative path starts at the file's directory",
        json_schema_extra={"type": TEXT, "default": "required"},
    )
    handler: Annotated[str | None, BeforeValidator(_handler)] = Field(
        None,
        description="MODULE:NAME, called with each message; one of this, command and forward",
        json_schema_extra={"type": TEXT, "default": "none"},
    )
    preload: bool = Field(
        False,  # noqa: FBT003
        description="import the handler before the workers are forked; new code then needs a restart of the pool",
        json_schema_extra={"type": SWITCH, "default": "false"},
    )
    shell: bool = Field(
        False,  # noqa: FBT003
        description="let /bin/sh run command, which is then one text",
        json_schema_extra={"type": SWITCH, "default": "false"},
    )
    command: tuple[Annotated[str, PlainValidator(_text)], ...] | None = Field(
        None,
        description="program and arguments for each message, with {path} {name} {queue} {attempt} {worker} filled in",
        json_schema_extra={"type": WORDS, "default": "none"},
    )
    forward: Annotated[str | None, BeforeValidator(_forward)] = Field(
        None,
        description="hand each message on, as it is, to this queue: its URL, or its name in this configuration",
        json_schema_extra={"type": TEXT, "default": "none"},
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
    state_dir: Annotated[str | None, BeforeValidator(_state_dir)] = Field(
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

    @model_validator(mode="after")
    def _together(self) -> QueueConfig:
        found = combinations(self)
        if found:
            raise PydanticCustomError(COMBINATION, "{text}", {"text": "; ".join(f[1] for f in found), "found": found})
        return self

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
            create=self.create,
        )


class MetricsConfig(_Table):
    """[metrics]"""

    listen: Annotated[tuple[str, int] | None, BeforeValidator(_listen)] = Field(
        ("127.0.0.1", 9464),
        description='HOST:PORT of /metrics, /healthz, /readyz and /api/status; "none" serves nothing',
        json_schema_extra={"type": TEXT, "default": "127.0.0.1:9464, or a free port when that is taken"},
    )

    @property
    def listen_is_default(self) -> bool:
        """Whether nobody asked for that address, so that another may be taken instead."""
        return "listen" not in self.model_fields_set


class Config(BaseModel):
    """The whole configuration in force. *warnings* are sentences for the log, no part of what it means."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    pool: PoolConfig
    queues: tuple[QueueConfig, ...]
    metrics: MetricsConfig
    path: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """Workers of all queues together."""
        return sum(queue.workers for queue in self.queues)


Found = tuple[tuple[str, ...], str]  # the keys that do not go together, the one to change first; and a sentence


def combinations(queue: QueueConfig) -> list[Found]:
    """What is wrong with the keys of one queue taken together."""
    found: list[Found] = []
    ways = [key for key in ("handler", "command", "forward") if getattr(queue, key) is not None]
    found.extend(((key, ways[0]), f"there is a {ways[0]} already; keep one of them") for key in ways[1:])
    if queue.forward in (queue.url, queue.name):
        found.append((("forward", "url"), "is this very queue; name another one"))
    if not ways:
        found.append(
            (
                ("handler", "command", "forward"),
                'is missing; set handler = "MODULE:NAME", command = ["PROGRAM", ...] or forward = "URL" '
                "(on the command line: --handler MODULE:NAME, or -- PROGRAM {path})",
            )
        )
    if queue.shell and queue.command is None:
        found.append((("shell", "command"), "needs command; a handler is never run by a shell"))
    if queue.shell and queue.command is not None and len(queue.command) != 1:
        found.append((("command", "shell"), "must be one text when shell is true, so that the quoting is the writer's"))
    if queue.retry_backoff > queue.retry_backoff_max:
        most = duration_text(queue.retry_backoff_max)
        text = f"must not be longer than retry_backoff_max, which is {most}"
        found.append((("retry_backoff", "retry_backoff_max"), text))
    return found + _lease_combinations(queue)


def _lease_combinations(queue: QueueConfig) -> list[Found]:
    found: list[Found] = []
    scheme = queue.url.partition(":")[0]
    if scheme in WITHOUT_LEASES:
        none = [key for key in ("lease_interval", "lease_timeout", "keep_done") if getattr(queue, key) is not None]
        return [((key, "url"), f"{key} is not possible: a {scheme} queue has none") for key in none]
    interval_s, interval = _or_new(queue.lease_interval, LEASE_INTERVAL_S)
    timeout_s, timeout = _or_new(queue.lease_timeout, LEASE_TIMEOUT_S)
    stale_s, stale = _or_new(queue.stale_after, STALE_AFTER_S)
    if timeout_s < 3 * interval_s:
        keys = ("lease_timeout", "lease_interval") if queue.lease_timeout else ("lease_interval", "lease_timeout")
        text = f"lease_timeout ({timeout}) must be three times lease_interval ({interval}) or more; set both"
        found.append((keys, text))
    if stale_s <= timeout_s:
        keys = ("stale_after", "lease_timeout") if queue.stale_after else ("lease_timeout", "stale_after")
        found.append((keys, f"stale_after ({stale}) must be longer than lease_timeout ({timeout}); set both"))
    return found


def _or_new(value: float | None, default: float) -> tuple[float, str]:
    """The value to compare, and its words; an unset one is compared as that of a new queue."""
    return (default, duration_text(default) + ", the default") if value is None else (value, duration_text(value))


TABLES: dict[str, type[PoolConfig] | type[QueueConfig] | type[MetricsConfig]] = {
    "pool": PoolConfig,
    "queue": QueueConfig,
    "metrics": MetricsConfig,
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
    plain = config.model_dump(mode="python", include={"pool", "metrics"})
    plain["pool"]["run_dir"] = str(config.pool.run_dir)
    plain["metrics"]["listen"] = listen_text(config.metrics.listen)
    queues = [queue.model_dump(mode="python") for queue in config.queues]
    for queue in queues:
        queue["command"] = None if queue["command"] is None else list(queue["command"])
    return {"pool": plain["pool"], "queue": queues, "metrics": plain["metrics"]}
