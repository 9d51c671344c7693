"""
fuzz TARGET for as long as asked: python -m tests.fuzz TARGET [--runs N] [--seconds S] [--corpus DIR]

With atheris installed coverage guides the inputs, and what opens new ways is kept in DIR; without it they are mutated
blindly. A finding is made as small as it gets, written into the target's corpus, and ends it with exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None
else:
    with atheris.instrument_imports(include=["workers", "orchestrator"]):
        import tests.fuzz.targets  # noqa: F401 - imported once more below, instrumented by then

from tests.fuzz.mutation import CORPUS, SIZE_MAX, kept, mutated, smaller
from tests.fuzz.targets import TARGETS, Target


def main() -> int:
    """Parse the command line and fuzz; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--runs", type=int, default=100_000, help="at most so many inputs")
    parser.add_argument("--seconds", type=int, default=1 << 30, help="at most so long")
    parser.add_argument("--corpus", type=Path, help="where atheris keeps what opens new ways")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if atheris is not None:
        return _guided(given.target, given.runs, given.seconds, given.corpus, given.seed)
    sys.stdout.write("atheris is not installed: inputs are mutated blindly\n")
    return _blind(given.target, given.runs, given.seconds, given.seed)


def _outcome(target: Target, data: bytes) -> str:
    """What came of it: read, or the name of the refusal. Raises the finding."""
    try:
        target.check(data)
    except target.refuses as error:
        return type(error).__name__
    return "read"


def _blind(name: str, runs: int, seconds: int, seed: int) -> int:
    target, corpus, chosen = TARGETS[name], kept(name), random.Random(seed)  # noqa: S311 - noise, not a secret
    seen: Counter[str] = Counter()
    end_s = time.monotonic() + seconds
    for _ in range(runs):
        data = mutated(chosen.choice(corpus), corpus, chosen)
        try:
            seen[_outcome(target, data)] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we are here for
            return _found(name, data, error)
        if time.monotonic() > end_s:
            break
    sys.stdout.write(f"{name}: {seen.total()} inputs, no finding; {dict(seen)}\n")
    return 0


def _found(name: str, data: bytes, error: Exception) -> int:
    def still_fails(shorter: bytes) -> bool:
        try:
            _outcome(TARGETS[name], shorter)
        except Exception as other:  # noqa: BLE001 - the same one again
            return type(other) is type(error)
        return False

    small = smaller(data, still_fails)
    path = CORPUS / name / f"found-{hashlib.sha256(small).hexdigest()[:8]}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(small)
    sys.stdout.write(f"{name}: {type(error).__name__}: {error}\n{small!r}\nkept as {path}\n")
    return 1


def _guided(name: str, runs: int, seconds: int, corpus: Path | None, seed: int) -> int:
    def check(data: bytes) -> None:
        try:
            _outcome(TARGETS[name], data)
        except Exception as error:
            _found(name, data, error)
            raise

    places = [str(place) for place in (corpus, CORPUS / name) if place is not None]
    if corpus is not None:
        corpus.mkdir(parents=True, exist_ok=True)
    else:
        places.insert(0, str(CORPUS / name))  # only read: there is no other place to write to
    flags = [f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={SIZE_MAX}", f"-seed={seed + 1}"]
    flags.append(f"-artifact_prefix={tempfile.gettempdir()}/")  # what it found, once more: _found() keeps it smaller
    atheris.Setup([sys.argv[0], *flags, *places], check)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
