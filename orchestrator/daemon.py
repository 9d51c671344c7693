"""
daemon - become a daemon and run a pool in it

python-daemon does the mechanics: two forks and a session between, umask, directory, owner,
descriptors, standard streams. What it leaves to others is here: supplementary groups, the
files that are opened before rights are given up, and what must be imported while there are
files to import from.

Every path but those of configuration files is one inside chroot_dir, which needs /proc, and
/dev/null where programs are run.

Raises: DaemonError, which become() tells to whoever launched. Main thread of a process with
one thread. Source: daemon(7); Stevens, "Advanced Programming in the UNIX Environment", 13.3.
Long because it is one order of steps, each with what it needs.
See also: launch (who waits for it), identity, pidfile, logs (LogFile), places, rundir (prepare), preload.
"""

from __future__ import annotations

import contextlib
import encodings
import importlib
import json
import logging
import os
import pkgutil
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from daemon.daemon import DaemonContext, change_root_directory
from daemon.daemon import DaemonError as MechanicsError

import orchestrator
import workers
from orchestrator import logs, places, rundir
from orchestrator.config import Config, DaemonConfig
from orchestrator.config_values import run_directory
from orchestrator.identity import Identity, environment, identify, rights_of
from orchestrator.pidfile import PidFile, PidFileHeld
from orchestrator.preload import preload
from workers.errors import OrchestratorError
from workers.queues.names import shown
from workers.system import be_seen

TEXT_MAX = 4000  # characters of one error

Serve = Callable[[Callable[[], None]], int]  # serve(on_ready) runs the pool and answers its exit code

log = logging.getLogger(__name__)


class DaemonError(OrchestratorError):
    """The daemon cannot be launched; the text says why."""


class Launcher(logging.Handler):
    """Who launched the daemon. As a logging handler it passes errors on, until the pool is ready."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(logging.ERROR)
        self._channel = channel
        self.is_ready = False

    def fileno(self) -> int:
        """The descriptor that the daemon must keep."""
        return self._channel.fileno()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass an error on; lost when the launcher does not read, or is gone."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += ": " + " ".join("".join(traceback.format_exception_only(record.exc_info[1])).split())
            with contextlib.suppress(OSError):
                self._tell({"error": logs.escaped(text)[:TEXT_MAX]}, socket.MSG_DONTWAIT)
        except Exception:  # noqa: BLE001 - a fault in the call that logs, shown as logging shows it
            self.handleError(record)

    def name_myself(self) -> bool:
        """Tell this process's number; False when the launcher is gone, who could not end us otherwise."""
        try:
            self._tell({"pid": os.getpid()})
        except OSError:
            return False
        return True

    def ready(self) -> None:
        """The pool works; from now on its errors are the log's alone."""
        self.is_ready = True
        self._end({"ready": True})

    def ended(self, code: int) -> None:
        """The pool ended, ready or not."""
        self._end({"ended": code})

    def _end(self, words: dict[str, object]) -> None:
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):
            # A launcher that was stopped, and whose buffer is full, must not hold the daemon up.
            self._channel.settimeout(1.0)
            self._tell(words)
        self._channel.close()

    def _tell(self, words: dict[str, object], flags: int = 0) -> None:
        self._channel.send(json.dumps(words).encode(), flags | socket.MSG_NOSIGNAL)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A descriptor as python-daemon wants it."""

    fd: int

    def fileno(self) -> int:
        """The descriptor."""
        return self.fd


@dataclass(frozen=True, slots=True)
class _Files:
    """What is opened while there are the rights to; standard input comes first of the three streams."""

    log: logs.LogFile
    streams: tuple[int, int, int]
    pid: PidFile | None


@dataclass(slots=True)
class _Made:
    """What this start has made so far; a start that fails takes it away again, as far as it still may."""

    pid: PidFile | None = None
    files: list[tuple[Path, os.stat_result]] = field(default_factory=list)

    def take_back(self) -> None:
        """Remove what has nothing in it."""
        if self.pid is not None:
            self.pid.discard()
        for path, info in self.files:
            places.remove_empty(path, info)


def become(config: Config, serve: Serve, launcher: Launcher) -> NoReturn:
    """Become the daemon, serve, and end the process, whatever happens."""
    code, made = 1, _Made()
    # Until there is a log it is alone: the launcher shows what it is told.
    root = logging.getLogger()
    launcher.setFormatter(root.handlers[0].formatter)
    root.handlers[:] = [launcher]
    try:
        _prepare(config, launcher, made)
        if launcher.name_myself():
            if made.pid is not None:
                made.pid.acquire(b"%d\n" % os.getpid())
                # It may be root's, in a directory of root's: a handler that has it open could name any process there,
                # for root to end. See test_no_child_of_a_daemon_has_its_pid_file_open.
                os.register_at_fork(after_in_child=made.pid.close)
            code = serve(launcher.ready)
    except PidFileHeld as error:
        log.error("%s; stop it, or give another --pid-file", error)
    except (OrchestratorError, OSError) as error:
        log.error("%s", error)
        code = getattr(error, "exit_code", 1)
    except BaseException:
        log.exception("the daemon failed")
    finally:
        if made.pid is not None:
            made.pid.release()
        if code and not launcher.is_ready:
            made.take_back()
        launcher.ended(code)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _prepare(config: Config, launcher: Launcher, made: _Made) -> None:
    """All steps of becoming a daemon, in the one order in which each still has what it needs. Raises DaemonError."""
    wanted = config.daemon
    identity = identify(wanted.user, wanted.group)
    if identity is not None:
        _leave_groups(identity, wanted)
    if identity is not None:
        _change_environment(config, identity)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    _reset_signals()
    # The directory changes, and handlers are to be found as they would be in the foreground.
    sys.path[:] = [os.path.abspath(place) if os.path.isdir(place or ".") else place for place in (*sys.path, "")]
    try:
        if identity is not None or wanted.chroot_dir is not None:
            import_everything()  # the new user may not be allowed to read where it is
        if wanted.chroot_dir is not None:
            # ORDER: users, modules and /dev/null are looked up, then the root is changed: they are outside.
            # See test_a_daemon_in_a_chroot_that_has_only_the_queue_and_proc_handles_messages.
            import_handlers(config)
            _change_root(wanted.chroot_dir)
        # ORDER: files are opened, then rights are given up: /var/log and /run are root's.
        # See test_a_daemon_gives_up_its_rights_and_groups_and_keeps_its_files.
        files = _open_files(config, identity, null, made)
        logs.append_to(files.log)
        logging.getLogger().addHandler(launcher)
        if identity is not None:
            _make_run_logs(config.pool.runlog_dir, identity)
            _look_ahead(config, identity)
        _detach(wanted, identity, files, launcher)
    except (MechanicsError, OSError) as error:
        raise DaemonError(f"cannot become a daemon: {error}") from error


def _leave_groups(identity: Identity, wanted: DaemonConfig) -> None:
    try:
        # ORDER: groups, then user: who is no longer root cannot leave a group. Before everything else, so that who
        # may not become another is told that. See test_a_daemon_gives_up_its_rights_and_groups_and_keeps_its_files.
        os.setgroups(identity.groups)
    except PermissionError as error:
        who = f"user {wanted.user}" if wanted.user is not None else f"group {wanted.group}"
        raise DaemonError(f"only root may become {shown(who)}") from error


def _change_environment(config: Config, identity: Identity) -> None:
    """Let it tell of the user that we become: HOME of root is closed to others."""
    if config.pool.run_dir == run_directory(os.environ, os.geteuid()):
        os.environ["ORCHESTRATOR_RUN_DIR"] = str(config.pool.run_dir)  # of another user the default is another
    if config.daemon.user is not None:
        for name, text in environment(identity.uid).items():
            os.environ.pop(name, None)
            if text is not None:
                os.environ[name] = text


def _reset_signals() -> None:
    """Who started us may ignore or hold back what a pool is to answer. Python's own dispositions stay."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _change_root(directory: Path) -> None:
    change_root_directory(str(directory))
    if not os.path.exists("/proc/self/stat"):
        raise DaemonError(
            f"there is no /proc in {shown(str(directory))}, by which a pool knows who lives: mount it there"
            " (mount --bind /proc CHROOT_DIR/proc)"
        )


def _open_files(config: Config, identity: Identity | None, null: int, made: _Made) -> _Files:
    pool, wanted = config.pool, config.daemon
    rundir.prepare(pool.run_dir, pool.name, None if identity is None else (identity.uid, identity.gid))
    os.umask(wanted.umask_bits)
    path = pool.log_file or pool.run_dir / pool.name / "log"
    stdout, stderr = (
        null if str(one) == os.devnull else _open(one, identity, made) for one in (wanted.stdout, wanted.stderr)
    )
    log_file = logs.LogFile(path, _open(path, identity, made))
    if wanted.pid_file is not None:
        made.pid = PidFile.open(wanted.pid_file, owners=() if identity is None else (identity.uid,))
    return _Files(log_file, (null, stdout, stderr), made.pid)


def _open(path: Path, identity: Identity | None, made: _Made) -> int:
    """Open a file to append to, with the rights of *identity*; where these do not do, with ours. Raises DaemonError."""
    try:
        if identity is not None:
            with contextlib.suppress(PermissionError), rights_of(identity.uid, identity.gid):
                return _append(path, made)
        count = len(made.files)
        fd = _append(path, made)
        if identity is not None and len(made.files) > count:
            os.fchown(fd, identity.uid, identity.gid)
    except OSError as error:
        raise DaemonError(f"cannot open {shown(str(path))}: {error.strerror}") from error
    return fd


def _append(path: Path, made: _Made) -> int:
    with contextlib.suppress(FileExistsError):
        fd = logs.open_log(path, os.O_EXCL)
        made.files.append((path, os.fstat(fd)))
        return fd
    return logs.open_log(path)


def _make_run_logs(directory: Path, identity: Identity) -> None:
    """Make the directory of the run logs for *identity*, who may not be able to. Where it fails the run log says so."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(PermissionError), rights_of(identity.uid, identity.gid):
            os.makedirs(directory, 0o700, exist_ok=True)
            return
        parent, name = places.open_parent(directory, 0o755)
        try:
            # Given away only where nobody else could have put another there meanwhile.
            if places.is_safe(os.fstat(parent)):
                places.make_directory(name, 0o700, parent)
                os.chown(name, identity.uid, identity.gid, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)


def _look_ahead(config: Config, identity: Identity) -> None:
    """Say now what the user will not be able to do later, as far as a look can tell."""
    where = config.pool.state_file.parent
    with rights_of(identity.uid, identity.gid):
        can_write = os.access(where, os.W_OK | os.X_OK, effective_ids=True)
        # In another root they are other files, if any.
        files = config.paths if config.daemon.chroot_dir is None else ()
        closed = [path for path in files if not os.access(path, os.R_OK, effective_ids=True)]
    if not can_write:
        log.error("the state cannot be written: user %d may not write into %s", identity.uid, shown(str(where)))
    for path in closed:
        log.error("a reload will not be able to read %s: user %d may not", shown(str(path)), identity.uid)


def _detach(wanted: DaemonConfig, identity: Identity | None, files: _Files, launcher: Launcher) -> None:
    """Give up rights, terminal, parent and descriptors."""
    stdin, stdout, stderr = (_Stream(fd) for fd in files.streams)
    DaemonContext(
        detach_process=True,
        working_directory=str(wanted.work_dir),
        umask=wanted.umask_bits,
        uid=None if identity is None else identity.uid,
        gid=None if identity is None else identity.gid,
        prevent_core=False,
        signal_map={},
        files_preserve=[launcher, files.log, *([] if files.pid is None else files.pid.descriptors)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    ).open()
    for fd in set(files.streams):
        os.close(fd)
    if identity is not None:
        _check_no_way_back(identity)
        be_seen()


def _check_no_way_back(identity: Identity) -> None:
    """Refuse to run where a handler could become root again: a capability outlives a change of user, if so set."""
    if identity.uid == 0:
        return
    with contextlib.suppress(PermissionError):
        os.setresuid(-1, 0, -1)
        raise DaemonError(
            "the rights of root were given up and can be taken back: CAP_SETUID was kept; start it without"
            " securebits, or as that user to begin with"
        )


def import_everything() -> None:
    """Import what the daemon and its children would import when they first need it."""
    names = ["multiprocess.popen_fork"]
    for package in (workers, orchestrator, encodings):
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    # Commands and measurements are for people, and some need what only they have; two encodings are another system's.
    others = ("orchestrator.cli", "orchestrator.bench", "encodings.mbcs", "encodings.oem")
    for name in names:
        if not name.startswith(others) and not name.endswith("__main__"):
            importlib.import_module(name)


def import_handlers(config: Config) -> None:
    """As preload does it; what these modules open by being imported is closed later. Raises HandlerError."""
    handlers = {one.handler for one in config.queues if one.handler is not None}
    components = {component.use for one in config.queues for component in one.components or ()}
    preload(sorted(handlers | components))
