"""
broker - Broker, the published class: queues of one root, used by any number of programs without a server

::

    b = Broker("/var/spool/ddmq", create=True)
    b.publish("tasks", "a text, or whatever JSON can hold")
    message = b.consume("tasks")
    if message is not None:
        work_on(message.message)
        b.ack(message)

consume() claims for *timeout* seconds (the message's, else the setting message_timeout); touch()
makes that longer. What is not acked by then is requeued or, unless it asks for that, removed:
publish with requeue=True what must not be lost. ack() removes, and requeues only when told to;
nack() requeues unless message, setting or caller say otherwise; no requeue goes beyond
requeue_limit. Priority 0 is the most urgent one.

Raises: DdmqError, ValueError, TypeError; OSError as the kernel gave it, FileNotFoundError for a queue that is missing.
Nothing is printed: warnings are logged.
Limits: one message is claimed by one consumer at a time, and after its claim has expired by another: at least once.
Long because: it has every method of the published class; what they do is in claims, files and settings.
Source: ddmq 0.9.14, the interface.
See also: message (what is handed out), settings (which value counts).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workers.ddmq.aside import errors_of
from workers.ddmq.claims import Outcome, give_back, is_at_limit, is_over, load, wants_requeue
from workers.ddmq.errors import CorruptError, DdmqError
from workers.ddmq.files import SETTINGS_FILE, WORK_DIRECTORY, QueueFiles, parse_waiting, parse_work
from workers.ddmq.flat_yaml import Value, dumps
from workers.ddmq.held import in_hand
from workers.ddmq.message import Message, message
from workers.ddmq.names import (
    PRIORITY_MAX,
    TEMPORARY,
    TIMEOUT_MAX_S,
    check_new_queue,
    check_queue,
    is_message_like,
)
from workers.ddmq.settings import DEFAULTS, SettingsFiles, whole
from workers.ddmq.taking import Taking, expiry_of
from workers.system import SYSTEM, System, remove
from workers.trust import Place, guarded

__all__ = ["Broker", "DdmqError", "Message", "broker", "message", "version"]

log = logging.getLogger(__name__)

version = "0.9.14"  # of the interface and the format
CLEAN_S = 60  # expired claims are looked for once in so many seconds
LEFT_OVER_S = 3600  # a temporary file so old has no writer any more
OWN_FILES = frozenset({SETTINGS_FILE, f"{SETTINGS_FILE}.intermediate", f"{SETTINGS_FILE}.example", WORK_DIRECTORY})


class Broker:
    """The queues below *root*. One object for one thread; a forked child may go on with it."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        create: bool = False,
        verbose: bool = False,
        debug: bool = False,
        *,
        durable: bool = False,
        system: System = SYSTEM,
    ) -> None:
        """
        Open *root*; with *create* make it, and any queue that is used, where they are missing.

        Args:
            verbose, debug: log to stderr what is done, and more of it.
            durable: what publish() returns is on the disk, its name too.

        Raises DdmqError: "missing" for no directory, "uninitiated" for one that has no ddmq.yaml.
        """
        if verbose or debug:
            level = logging.DEBUG if debug else logging.INFO
            logging.basicConfig(format="%(levelname)s:\t%(message)s", level=level)
        self.root = root
        self.create = create
        self.default_settings: dict[str, Value] = dict(DEFAULTS)
        self.queue_settings: dict[str, dict[str, Value]] = {}
        self._path = os.fspath(root)
        self._system = system = guarded(system, Place(self._path, inboxes=(".",), is_deep=True))
        self._durable = durable
        self._settings = SettingsFiles(self._path, system)
        self._files: dict[str, QueueFiles] = {}
        self._takings: dict[str, Taking] = {}
        self._housekeeping_after_ns: dict[str, int] = {}
        self._last_number = ""
        if not self.check_dir(self._path, only_conf=True):
            self._initiate()
        self.global_settings: dict[str, Value] = self._settings.of_root(self.default_settings)

    def __repr__(self) -> str:
        shown = ("create", "default_settings", "global_settings", "queue_settings", "root")
        return os.linesep.join(f"{name} = {getattr(self, name)}" for name in shown)

    def version(self) -> str:
        """The version of the published interface."""
        return version

    # ---- settings

    def get_config_file(self, queue: str = "") -> dict[str, Value]:
        """What stands in the file of *queue*, or of the root. Raises SettingsError, OSError."""
        return self._settings.read(check_queue(queue) if queue else "")

    def get_settings(self, queue: str) -> dict[str, Value]:
        """What counts for *queue*. Raises SettingsError, OSError, FileNotFoundError when it is missing."""
        found = self._settings.effective(check_queue(queue), self.default_settings)
        self.queue_settings[queue] = found
        return found

    def update_settings_file(self, queue: str = "", package: Mapping[str, Value] | None = None) -> None:
        """Change what *package* names in the file of *queue*, or of the root. Raises SettingsError, OSError."""
        self._settings.update(check_queue(queue) if queue else "", package or {})
        if not queue:
            self.global_settings = self._settings.of_root(self.default_settings)

    # ---- cleaning

    def clean(self, queue: str, force: bool = False) -> bool:
        """
        Requeue or remove what has expired; False when that was done less than a minute ago.

        With *force* at any time. Raises OSError.
        """
        settings, files = self.get_settings(queue), self._of(queue)
        if not force and not self._is_due(settings, files):
            return False
        log.info("cleaning %s", queue)
        # ORDER: the claims, then who has them, for a pool says so before it claims and until it has given back.
        # See test_what_a_pool_had_in_hand_is_given_back_in_every_order_of_a_cleaning_and_its_keeper.
        names, held = list(files.working()), functools.cache(functools.partial(in_hand, files))
        for work_name in names:
            claim = parse_work(work_name)
            if claim is not None and claim[0] < int(files.now_s()):
                try:
                    if is_over(files, work_name, whole(settings, "message_timeout")) and not self._give_back_to_pool(
                        files, work_name, claim[1], held
                    ):
                        self._give_back(files, work_name, settings, wants_requeue)
                except OSError as error:
                    log.warning(
                        "%s/%s has expired, and stays until the next cleaning: %s", files.work, work_name, error
                    )
        files.sweep_tmp(LEFT_OVER_S)
        # ORDER: at last, for a cleaning that was cut short is to be done again.
        # See test_Q10_a_cleaning_that_was_cut_short_is_done_again.
        try:
            self._settings.update(queue, {"cleaned": int(files.now_s())}, wait_s=0)
        except BlockingIOError:  # another writes there just now, likely the same
            pass
        except PermissionError as error:  # in a sticky directory the file is its owner's
            self._housekeeping_after_ns[queue] = self._system.boottime_ns() + CLEAN_S * 10**9
            log.warning("%s was cleaned, and nobody else is told: %s", files.path, error)
        return True

    def clean_all(self) -> None:
        """clean() every queue."""
        for queue in self.list_queues():
            self.clean(queue)

    # ---- queues

    def list_queues(self) -> list[str]:
        """The names of the queues, sorted. What cannot be looked into is none."""

        def is_queue(name: str) -> bool:
            try:
                return QueueFiles(self._path, name, self._system).is_queue()
            except OSError:
                return False

        found = [name for name in sorted(self._system.listdir(self._path)) if is_queue(name)]
        for gone in self._files.keys() - {"", *found}:
            self._forget(gone)
        return found

    def get_message_list(self, queue: str) -> tuple[list[str], list[str]]:
        """The names of what waits and of what is claimed, in no order. Raises FileNotFoundError."""
        files = self._of(check_queue(queue))
        return self._message_like(files.path), self._message_like(files.work)

    def create_queue(self, queue: str) -> bool:
        """Make *queue*. Raises ValueError for its name, FileExistsError when it is there already, OSError."""
        files = self._of(check_new_queue(queue))
        log.info("creating %s", queue)
        # What is there without settings is a queue that was not finished, or nothing of ours.
        try:
            is_ours = set(self._system.listdir(files.path)) <= {WORK_DIRECTORY}
        except FileNotFoundError:
            is_ours = True
        if not is_ours:
            raise FileExistsError(errno.EEXIST, "is there already", files.path)
        files.make()
        # ORDER: the settings at last. With them it is a queue, and of two who make it one is told that it was there.
        # See test_of_two_who_create_a_queue_one_is_told_that_it_exists.
        self._settings.write_new(queue, dumps(self.default_settings))
        return True

    def delete_queue(self, queue: str) -> bool:
        """
        Remove *queue* with all its messages.

        Raises FileNotFoundError; OSError, nothing being removed, when files lie there that are none of ddmq's.
        """
        files = self._of(check_queue(queue))
        system = self._system
        log.info("deleting %s", queue)
        foreign = set(system.listdir(files.path)) - OWN_FILES - set(self._message_like(files.path))
        temporary: set[str] = set()
        with contextlib.suppress(FileNotFoundError):
            there = set(system.listdir(files.work))
            temporary = {name for name in there if TEMPORARY.match(name)}
            foreign |= there - temporary - set(self._message_like(files.work))
        if foreign:
            shown = ", ".join(sorted(foreign)[:5])
            raise OSError(
                errno.ENOTEMPTY, f"holds files that are none of ddmq's, nothing was deleted: {shown}", files.path
            )
        self.purge_queue(queue)
        for name in sorted(OWN_FILES - {WORK_DIRECTORY}):
            remove(self._system, f"{files.path}/{name}")
        for name in temporary:
            remove(self._system, f"{files.work}/{name}")
        with contextlib.suppress(FileNotFoundError):
            system.rmdir(files.work)
        system.rmdir(files.path)
        self._forget(queue)
        for directory in (errors_of(files), f"{files.path}.pool"):  # kept while something was set aside there
            with contextlib.suppress(OSError):
                system.rmdir(directory)
        return True

    def purge_queue(self, queue: str) -> tuple[int, int]:
        """Remove all messages: how many waited, and how many were claimed. Raises FileNotFoundError, OSError."""
        files = self._of(check_queue(queue))
        log.info("purging %s", queue)
        claimed: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            claimed = self._message_like(files.work)
        removed_claims = sum(remove(self._system, f"{files.work}/{name}") for name in claimed)
        removed = sum(remove(self._system, f"{files.path}/{name}") for name in self._message_like(files.path))
        self._takings.pop(queue, None)
        return removed, removed_claims

    # ---- one message, by its path

    def get_message(self, path: str) -> Message:
        """The message in the file *path*. Raises FileNotFoundError, OSError, CorruptError."""
        try:
            return load(QueueFiles(self._path, "", self._system), path)
        except CorruptError as error:
            raise CorruptError(f"{path} {error.message}") from None

    def delete_message(self, path: str | Message) -> bool:
        """Remove a message, waiting or claimed. Raises ValueError when *path* is not called like one, OSError."""
        if isinstance(path, Message):
            files, name = self._of(check_queue(path.queue)), os.path.basename(str(path.filename))
            path = f"{files.path if parse_waiting(name) else files.work}/{name}"
        name = os.path.basename(path)
        if not parse_waiting(name) and not parse_work(name):
            raise ValueError(f"{path} is not called like a message of ddmq")
        self._system.unlink(path)
        return True

    def requeue_message(self, path: str, msg: Message | None = None) -> bool:
        """
        Put a claimed message back under the priority for requeued ones, or remove it at its limit.

        *path* is the claim's file; *msg*, when given, is what is put back instead of its content.
        Raises FileNotFoundError when it is gone, ValueError when it is no claim's file, OSError.
        """
        directory, name = os.path.split(path)
        queue = msg.queue if msg is not None and not directory else os.path.basename(os.path.dirname(directory))
        files = self._of(check_queue(queue))
        if not parse_work(name):
            raise ValueError(f"{path} is not called like a claimed message of ddmq")
        if self._give_back(files, name, self.get_settings(files.queue), _always, msg) is Outcome.GONE:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return True

    # ---- paths and numbers

    def check_dir(self, path: str, only_conf: bool = False) -> bool | None:
        """True when *path* has a ddmq.yaml and, unless *only_conf*, a work/; else None."""
        if not self._is_file(os.path.join(path, SETTINGS_FILE)):
            return None
        return True if only_conf or self._is_directory(os.path.join(path, WORK_DIRECTORY)) else None

    def get_queue_number(self) -> str:
        """The time without its decimal point; later ones of one object sort later, also when the clock is set back."""
        number, step_ns = _number_of(self._system.wall_ns()), 0
        while number <= self._last_number:
            last_ns = int(self._last_number[:10]) * 10**9 + int(self._last_number[10:].ljust(9, "0")[:9])
            step_ns += 1000  # after 2106 a float cannot tell each microsecond from the next
            number = _number_of(last_ns + step_ns)
        self._last_number = number
        return number

    def create_folder(self, path: str) -> None:
        """Make the directory *path*, with its parents. Raises FileExistsError, OSError."""
        parent = os.path.dirname(path.rstrip("/"))
        if parent and not self._is_directory(parent):
            with contextlib.suppress(FileExistsError):
                self.create_folder(parent)
        self._system.mkdir(path)

    # ---- publish and consume

    def publish(  # noqa: PLR0917 - the published order
        self,
        queue: str,
        msg_text: Any = None,
        priority: int | None = None,
        clean: bool = True,
        requeue: bool | int | None = False,
        requeue_prio: int | None = None,
        timeout: float | None = None,
        requeue_counter: int = 0,
        requeue_limit: int | None = None,
        *,
        skip_cleaning: bool = False,
    ) -> Message:
        """
        Put a message into *queue*: it is seen whole or not at all. The message as it waits.

        Args:
            msg_text: what JSON can hold; None is "".
            priority: 0 is the most urgent; None: the setting's.
            requeue: whether it waits again when its claim has expired (None: no); a number: with that priority.
            requeue_prio: a number there implies *requeue*.
            timeout: seconds for which a claim lasts, a fraction is rounded up; None and 0: the setting's.
            requeue_limit: how often it is requeued at most; None and 0: for ever.

        Raises ValueError for a number that is negative or too great, TypeError for what is none or not JSON, OSError.
        """
        priority = _checked(priority, "priority")
        requeue_prio = _checked(requeue_prio, "requeue_prio")
        if not isinstance(requeue, bool):
            requeue = _checked(requeue, "requeue")
        if requeue_limit is not None and requeue_limit < 0:
            raise ValueError(f"requeue_limit is {requeue_limit!r}, but must be 0 or more")
        if timeout is not None and not 0 <= timeout <= TIMEOUT_MAX_S:
            raise ValueError(f"timeout is {timeout!r}, but must be seconds, 0 to {TIMEOUT_MAX_S}")
        if isinstance(timeout, float):  # an original that claims it would write the fraction into the name
            timeout = math.ceil(timeout)
        settings = self._prepared(queue, is_cleaning=clean and not skip_cleaning)
        if requeue_prio is not None:
            # True where that says the same: to an original 0 is no wish to be requeued.
            requeue = True if requeue_prio == 0 == settings["requeue_prio"] else requeue_prio
        new = Message(
            message="" if msg_text is None else msg_text,
            queue=queue,
            priority=_checked(whole(settings, "priority"), "the setting priority") if priority is None else priority,
            requeue=requeue,
            timeout=timeout,
            requeue_counter=requeue_counter,
            requeue_limit=requeue_limit,
        )
        new.queue_number = self.get_queue_number()
        new.id = uuid.UUID(bytes=self._system.random_bytes(16), version=4).hex
        new.filename = f"{new.priority}.{new.queue_number}.ddmq{new.id}"
        # ORDER: to JSON before anything is written. See test_Q13_what_is_no_json_leaves_nothing.
        data = new.msg2json().encode()
        listing = self._taking(queue).listing
        is_good = listing.is_good()
        self._of(queue).publish(new.filename, data, durable=self._durable)
        if listing.is_recent():
            listing.add(new.filename)
        if is_good:
            listing.note()
        return new

    def consume(
        self, queue: str, n: int | None = 1, clean: bool = True, *, skip_cleaning: bool = False
    ) -> Message | list[Message] | None:
        """
        Claim the next message, or with *n* above 1 a list of as many as there are; None when nothing waits.

        *filename* of a message is then that of its claim. Losing a message to another consumer is no error.
        Raises ValueError, OSError.
        """
        count = n or 1
        if count < 0:
            raise ValueError(f"n is {n}, but must be 1 or more")
        settings = self._prepared(queue, is_cleaning=clean and not skip_cleaning)
        taken = self._taking(queue).take(count, settings)
        if not taken:
            return None
        return taken[0] if count == 1 else taken

    # ---- settle

    def ack(
        self,
        queue: str | Message,
        msg_files: str | Sequence[str] | None = None,
        requeue: bool | None = None,
        clean: bool = True,
        *,
        skip_cleaning: bool = False,
    ) -> list[str]:
        """
        Remove what was consumed and done; with *requeue* True put it back. The names of what was.

        *queue* with the names of claims, or a message alone. A claim that is gone (expired, acked before) is logged
        and left out. Raises ValueError when no claim is named, OSError.
        """
        del clean, skip_cleaning  # as published: an ack cleans nothing
        files, names = self._claims(queue, msg_files)
        acked = []
        for name in names:
            if requeue:
                is_done = self._nack_one(files, name, _always)
            else:
                is_done = parse_work(_within(files, name)) is not None and files.remove(_within(files, name))
                if not is_done:
                    self._warn_missing(files, name)
            if is_done:
                acked.append(name)
        return acked

    def nack(
        self,
        queue: str | Message,
        msg_files: str | Sequence[str] | None = None,
        requeue: bool | None = None,
        clean: bool = True,
        *,
        skip_cleaning: bool = False,
    ) -> list[str]:
        """
        Give back what was consumed and not done: put back, or removed. The names of what was.

        *requeue*: True and False say which; None asks the message, and then the setting. See ack().
        """
        del clean, skip_cleaning
        files, names = self._claims(queue, msg_files)
        by_default = bool(self.get_settings(files.queue)["requeue"])

        def wants(found: Message) -> bool:
            return wants_requeue(found) or by_default if requeue is None else bool(requeue)

        return [name for name in names if self._nack_one(files, name, wants)]

    def touch(self, msg: Message, timeout: float | None = None) -> bool:
        """
        Let the claim of *msg* last for *timeout* seconds from now (None, 0: its own, else the setting's).

        False when it is gone: expired, and perhaps another's. Not in the published class.
        """
        files, names = self._claims(msg, None)
        settings = self.get_settings(files.queue)
        later = files.touch(names[0], expiry_of(files, timeout or msg.timeout, settings))
        if later is None:
            return False
        msg.filename = later
        return True

    # ---- inside

    def _of(self, queue: str) -> QueueFiles:
        found = self._files.get(queue)
        if found is None:
            found = self._files[queue] = QueueFiles(self._path, queue, self._system)
        return found

    def _taking(self, queue: str) -> Taking:
        found = self._takings.get(queue)
        if found is None:
            found = self._takings[queue] = Taking(self._of(queue))
        return found

    def _forget(self, queue: str) -> None:
        """Let go of a queue that is gone."""
        for known in (self._files, self._takings, self._housekeeping_after_ns, self.queue_settings):
            known.pop(queue, None)
        self._settings.forget(queue)

    def _initiate(self) -> None:
        """Make the root, or raise DdmqError when that was not asked for."""
        is_there = self._is_directory(self._path)
        if not self.create:
            if not is_there:
                raise DdmqError(f"the root directory is missing: {self._path}", "missing")
            raise DdmqError(
                f"the root directory is not initiated, it has no {SETTINGS_FILE}: {self._path}", "uninitiated"
            )
        if not is_there:
            with contextlib.suppress(FileExistsError):
                self.create_folder(self._path)
        with contextlib.suppress(FileExistsError):
            self._settings.write_new("", "")
        files, example = self._of(""), os.path.join(self._path, f"{SETTINGS_FILE}.example")
        self._system.rename(files.write_temporary(dumps(self.default_settings).encode(), durable=False), example)

    def _prepared(self, queue: str, *, is_cleaning: bool) -> dict[str, Value]:
        """The settings of *queue*, which is made if that is wished and cleaned if that is due."""
        try:
            settings = self.get_settings(queue)
        except (FileNotFoundError, NotADirectoryError):
            if not self.create:
                raise
            with contextlib.suppress(FileExistsError):  # another has made it meanwhile
                self.create_queue(queue)
            settings = self.get_settings(queue)
        files, now_ns = self._of(queue), self._system.boottime_ns()
        is_wanted = is_cleaning and now_ns >= self._housekeeping_after_ns.get(queue, 0)
        if is_wanted and self._is_due(settings, files):
            try:
                self.clean(queue, force=True)
            except OSError as error:
                # A full disk must not keep anybody from consuming what fills it.
                self._housekeeping_after_ns[queue] = now_ns + CLEAN_S * 10**9
                log.warning("%s cannot be cleaned: %s", files.path, error)
            settings = self.get_settings(queue)
        return settings

    def _is_due(self, settings: Mapping[str, Value], files: QueueFiles) -> bool:
        cleaned = settings["cleaned"]
        assert isinstance(cleaned, int | float)  # noqa: S101 - settings are checked when they are read
        # A time far ahead was written by a host whose clock is wrong; waiting for it would be for ever.
        return not -CLEAN_S <= int(files.now_s()) - cleaned <= CLEAN_S

    def _claims(self, queue: str | Message, names: str | Sequence[str] | None) -> tuple[QueueFiles, list[str]]:
        """The queue and the names of claims that a caller means. Raises ValueError for none."""
        name = queue
        if isinstance(queue, Message):
            name, names = str(queue.queue), queue.filename
        if not names:
            raise ValueError("no message was named: give names of files in work, or a message that was consumed")
        return self._of(check_queue(name)), [names] if isinstance(names, str) else list(names)

    def _nack_one(self, files: QueueFiles, name: str, wants: Callable[[Message], bool]) -> bool:
        """End the claim *name* as give_back does; False, and logged, when it is gone, or was no message."""
        outcome = self._give_back(files, _within(files, name), self.get_settings(files.queue), wants)
        if outcome is Outcome.GONE:
            self._warn_missing(files, name)
        return outcome in (Outcome.REQUEUED, Outcome.REMOVED)

    def _give_back_to_pool(
        self, files: QueueFiles, work_name: str, waited_as: str, held: Callable[[], set[bytes]]
    ) -> bool:
        """
        Let an expired claim of a pool wait again as it was, when it would be removed otherwise; False when not.

        By one rename: from its keeper, who looks for it under the name that it has, it is never hidden.
        """
        try:
            found = load(files, f"{files.work}/{work_name}")
        except (CorruptError, FileNotFoundError):
            return False
        is_kept = wants_requeue(found) and not is_at_limit(found)
        if is_kept or waited_as.encode() not in held():
            return False
        try:
            if files.put_back(work_name, waited_as):
                log.info("%s/%s has expired, and is a pool's: it waits again", files.work, work_name)
                self._taking(files.queue).listing.drop()
        except FileExistsError:
            log.warning("%s/%s waits already: this copy of it stays in work", files.path, waited_as)
        return True

    def _give_back(
        self,
        files: QueueFiles,
        work_name: str,
        settings: Mapping[str, Value],
        wants: Callable[[Message], bool],
        msg: Message | None = None,
    ) -> Outcome:
        outcome = give_back(files, work_name, settings, wants, msg)
        if outcome is Outcome.REQUEUED:
            self._taking(files.queue).listing.drop()
        return outcome

    def _warn_missing(self, files: QueueFiles, name: str) -> None:
        log.warning("%s/%s is missing: it has expired, or was acked before", files.work, name)

    def _message_like(self, path: str) -> list[str]:
        """What an original takes for messages in the directory *path*; no directories."""
        with self._system.scandir(path) as entries:
            return [
                entry.name
                for entry in entries
                if is_message_like(entry.name) and not entry.is_dir(follow_symlinks=False)
            ]

    def _is_directory(self, path: str) -> bool:
        return self._system.is_directory(path, is_followed=True)

    def _is_file(self, path: str) -> bool:
        try:
            return self._system.stat(path).st_mode & 0o170000 == 0o100000
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False


broker = Broker


def _always(_message: Message) -> bool:
    return True


def _number_of(time_ns: int) -> str:
    """The digits of a time: ten of its seconds, also of a clock that stands before 2001, then those of the fraction."""
    whole, _, fraction = str(max(time_ns, 10**6) / 1e9).partition(".")
    return f"{whole:0>10}{fraction}"


def _checked(number: int | None, what: str) -> int | None:
    """*number* when it can be a priority. Raises TypeError, ValueError."""
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} is a whole number, not {number!r}")
    if number < 0:
        raise ValueError(f"{what} is {number}, but must be 0 or more: 0 is the most urgent")
    if number > PRIORITY_MAX:
        raise ValueError(f"{what} has too many digits: {PRIORITY_MAX} is the greatest")
    return number


def _within(files: QueueFiles, name: str) -> str:
    """The name of a claim that a caller gave as a name, or as a path into work/; else as it is, and no claim's."""
    directory, last = os.path.split(name)
    return last if directory and os.path.abspath(directory) == os.path.abspath(files.work) else name
