"""
test_tidy - what holds for the whole project: lint, types, import direction, words that must agree

One command proves all, so ruff and mypy run here as tests. The rest reads the source
(ast, tokenize) or asks the commands themselves; nothing here starts a pool.
"""

from __future__ import annotations

import ast
import functools
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.queues import names

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("workers", "orchestrator")
SKIPPED = {"build", "dist", "__pycache__", "node_modules"}
LINES_MAX = 300

# Higher imports lower, never the other way round; equals may, as long as there is no circle.
WORKERS_LEVELS = {
    "workers": 6,
    "workers.__main__": 6,
    "workers.worker": 5,
    "workers.keeper": 5,
    "workers.handler": 5,
    "workers.piper": 5,
    "workers.output": 4,
    "workers.waiting": 4,
    "workers.queues.open": 4,
    "workers.queues.directory": 2,
    "workers.queues.lease": 2,
    "workers.queues.scan": 2,
    "workers.queues.base": 1,
    "workers.queues.names": 0,
}
ADAPTER, HANDLERS, BOTTOM = 3, 4, 0
TOP, MASTER, MIDDLE, CONFIG = 4, 3, 2, 1
# Policy and loop know nobody of their package.
BOTTOM_OF_MASTER = ("orchestrator.pool", "orchestrator.loop")
UPWARDS = {
    ("workers.queues.open", "workers.keeper"): "open_queue(consume=True) forks the keeper of a lone consumer",
}
# The door to the kernel is workers/system.py: a queue is given a System, so that a test can fail its third call.
KERNEL = re.compile(
    r"os\.(rename|renames|replace|link|symlink|unlink|remove|mkdir|makedirs|rmdir|removedirs|listdir|scandir|walk|open|close"
    r"|read|write|pread|pwrite|stat|lstat|fstat|utime|truncate|ftruncate|fsync|fdatasync|statvfs|urandom|getpid|getppid"
    r"|kill|killpg|fork|chmod|chown|access|sendfile|copy_file_range)|time\.\w+|random\.\w+|shutil\.\w+"
)
KERNEL_ALLOWED = {
    "random.uniform": "spreads load in time; nothing depends on the value",
    "time.gmtime": "pure: turns a number into a date",
    "time.strftime": "pure: turns a date into text",
}
# What makes code, or objects of any kind, of what it is given.
EVALUATING = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "codeop", "runpy"}
EVALUATORS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "tempfile.mktemp", "logging.config.fileConfig", "logging.config.dictConfig",
}  # fmt: skip
IMPORTERS = ("workers.handler", "orchestrator.cli", "orchestrator.daemon", "orchestrator.bench.")
# By prefix, the first that fits; in each package what is not named here has the last place.
LEVELS = (
    ("workers.queues.", ADAPTER),
    ("workers.handlers", HANDLERS),
    ("workers.", BOTTOM),
    ("orchestrator.cli", TOP),
    ("orchestrator.__main__", TOP),
    ("orchestrator.demo", TOP),
    ("orchestrator.bench", TOP),
    ("orchestrator.doctor", TOP),
    ("orchestrator.master", MASTER),
    ("orchestrator.config", CONFIG),
    ("orchestrator.", MIDDLE),
    ("orchestrator", BOTTOM),
)


# ---- the source, read once


@functools.cache
def sources() -> dict[str, Path]:
    """Module name to file, of both packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "protocol-check" in parts or "__pycache__" in parts:
                continue
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def in_type_checking(root: ast.Module) -> set[ast.AST]:
    """The nodes that only a type checker sees."""
    found: set[ast.AST] = set()
    for node in ast.walk(root):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                found.update(ast.walk(child))
    return found


def names_of(node: ast.AST) -> list[str]:
    """The dotted names that one import statement brings, as modules where they are modules of ours."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports here are absolute"
        base = node.module or ""
        return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in sources() else base for alias in node.names]
    return []


def imports(module: str, *, at_import: bool = False) -> list[str]:
    """What *module* imports; with *at_import* only what it does while being imported itself."""
    root = tree(module)
    unseen = in_type_checking(root)
    nodes: Iterator[ast.AST] | list[ast.stmt] = root.body if at_import else ast.walk(root)
    return [name for node in nodes if node not in unseen for name in names_of(node)]


@functools.cache
def project_files() -> list[Path]:
    """Every file that belongs to the project."""
    found = []
    for top, directories, files in os.walk(ROOT):
        directories[:] = [
            name
            for name in directories
            if name not in SKIPPED
            and not name.endswith(".egg-info")
            and (name == ".ci" or not name.startswith("."))
            and not (Path(top) / name / "pyvenv.cfg").exists()
        ]
        found += [Path(top) / name for name in files]
    return sorted(found)


def text_of(path: Path, what: str) -> str:
    """The text of a file of the project; fails with *what* it is for when it is missing."""
    assert path.exists(), f"{path.relative_to(ROOT)} is missing: {what}"
    return path.read_text(encoding="utf-8")


def between(text: str, start: str, end: str) -> str:
    """What stands between two markers, without blank lines around it."""
    assert start in text, f"the marker {start} is missing"
    rest = text.partition(start)[2]
    assert end in rest, f"the marker {end} is missing after {start}"
    return rest.partition(end)[0].strip()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module in the project's root; stdout and stderr together."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
        check=False,
    )


# ---- lint and types


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check", "--diff")], ids=["check", "format"])
def test_ruff_has_nothing_to_say(arguments: tuple[str, ...]) -> None:
    done = run("ruff", *arguments, "--no-cache", ".")
    assert done.returncode == 0, done.stdout


def test_mypy_strict_has_nothing_to_say() -> None:
    done = run("mypy")
    assert done.returncode == 0, done.stdout


def test_no_file_is_exempted_as_a_whole() -> None:
    """A refusal to look at a file hides what nobody has thought of."""
    pattern = re.compile(r"#\s*(ruff:\s*noqa\s*$|flake8:\s*noqa|mypy:\s*ignore-errors|type:\s*ignore(?!\[)|noqa(?!:))")
    for module, path in sources().items():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not pattern.search(line), f"{module}, line {number}: name the rule"


def test_security_rules_are_on_and_each_exception_says_why() -> None:
    """For the product no rule of the static check is left out as a whole, and none without a reason."""
    lint = tomllib.loads(text_of(ROOT / "pyproject.toml", "what is checked"))["tool"]["ruff"]["lint"]
    assert {"S", "B", "BLE", "G", "PL", "PGH"} <= set(lint["select"])
    ignored = {**lint["per-file-ignores"], "": lint["ignore"]}
    for pattern, rules in ignored.items():
        assert pattern.startswith("tests/") or not [rule for rule in rules if re.match(r"S\d", rule)], pattern
    for module, path in sources().items():
        for number, comment in comments_of(path).items():
            # An assert that is kept says by its own text what it is for.
            unsaid = re.match(r"noqa: (?!S101)S\d++(?! - \w)", comment)
            assert not unsaid, f"{module}, line {number}: say why"


def test_nothing_that_is_read_is_evaluated() -> None:
    """No text becomes code, but a module by the name that the operator, or this program itself, has given."""
    found = []
    for module in sources():
        found += [f"{module} imports {name}" for name in imports(module) if name.partition(".")[0] in EVALUATING]
        for node in ast.walk(tree(module)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            is_importer = called.endswith("import_module") and not module.startswith(IMPORTERS)
            if called in EVALUATORS or is_importer:
                found.append(f"{module}, line {node.lineno}: {called}")  # type: ignore[attr-defined]
    assert not found, "\n".join(found)


# ---- import direction


def level(module: str) -> int:
    """The place of *module* in its package."""
    if module in WORKERS_LEVELS:
        return WORKERS_LEVELS[module]
    return next(place for prefix, place in LEVELS if module.startswith(prefix))


def test_workers_import_the_standard_library_and_themselves_only() -> None:
    for module in sources():
        if module.partition(".")[0] == "workers":
            for name in imports(module):
                top = name.partition(".")[0]
                assert top == "workers" or top in sys.stdlib_module_names, f"{module} imports {name}"


def test_imports_never_go_up() -> None:
    upwards = []
    for module in sources():
        for name in imports(module):
            is_sibling = name in sources() and name.partition(".")[0] == module.partition(".")[0]
            if is_sibling and level(name) > level(module) and (module, name) not in UPWARDS:
                upwards.append(f"{module} (level {level(module)}) imports {name} (level {level(name)})")
    assert not upwards, "\n".join(upwards)


def test_policy_loop_and_configuration_know_nobody_above_them() -> None:
    for module in BOTTOM_OF_MASTER:
        assert module in sources(), f"{module} is missing"
        upper = [name for name in imports(module) if name.startswith("orchestrator.")]
        assert not upper, f"{module} imports {upper}"
    for module in sources():
        if module.startswith("orchestrator.config"):
            upper = [name for name in imports(module) if name.startswith("orchestrator.")]
            assert all(name.startswith("orchestrator.config") for name in upper), f"{module} imports {upper}"


def test_policy_does_no_io_and_has_no_clock() -> None:
    assert "orchestrator.pool" in sources(), "orchestrator/pool.py is missing"
    banned = {"os", "time", "socket", "subprocess", "signal", "select", "selectors", "threading", "random", "io"}
    assert not banned & {name.partition(".")[0] for name in imports("orchestrator.pool")}


def ours(module: str) -> set[str]:
    """The modules of this project that are imported when *module* is."""
    return {name for name in imports(module, at_import=True) if name in sources()} - {module}


def test_no_circle_of_imports() -> None:
    """Only what happens at import counts: an import inside a function waits until it is called."""
    edges = {module: ours(module) for module in sources()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for name in sorted(edges[module]):
                visit(name, (*trail, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


def test_queues_reach_the_kernel_only_through_their_system() -> None:
    direct = []
    for module in sources():
        if not module.startswith("workers.queues."):
            continue
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called not in KERNEL_ALLOWED and (KERNEL.fullmatch(called) or called in ("open", "io.open")):
                    direct.append(f"{module}, line {node.lineno}: {called} goes round workers/system.py")
    assert not direct, "\n".join(direct)


def test_master_never_sleeps_and_starts_no_thread() -> None:
    for module in ("orchestrator.master", "orchestrator.loop", "orchestrator.running", "orchestrator.child"):
        assert module in sources(), f"{module} is missing"
        assert not {"threading", "concurrent"} & {name.partition(".")[0] for name in imports(module)}, module
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert not called.endswith((".sleep", ".Thread")), f"{module}, line {node.lineno}: {called}"


# ---- modules and comments


def test_long_modules_say_why() -> None:
    long = []
    for module, path in sources().items():
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LINES_MAX and "Long because" not in (ast.get_docstring(tree(module)) or ""):
            long.append(f"{module} has {count} lines: split it, or say 'Long because' why not")
    assert not long, "\n".join(long)


def test_every_module_has_a_manual_page_for_a_header() -> None:
    for module, path in sources().items():
        if path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip():
            continue
        header = ast.get_docstring(tree(module)) or ""
        assert re.match(r"[\w./ -]+ - \S", header), f"{module}: the header begins with 'name - what it is'"


@functools.cache
def known_tests() -> frozenset[str]:
    """Every test function and test file there is."""
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        found.add(path.stem)
        found.update(re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8")))
    return frozenset(found)


def comments_of(path: Path) -> dict[int, str]:
    """Line number to comment, without its mark."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def whole(comments: dict[int, str], number: int) -> str:
    """The comment at line *number* with the lines that go on after it."""
    words = [comments[number]]
    while number + 1 in comments:
        number += 1
        words.append(comments[number])
    return " ".join(words)


def around(module: str, number: int) -> range:
    """The lines of the innermost function at *number*, or that line alone."""
    found = range(number, number + 1)
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef) and node.lineno <= number <= (node.end_lineno or 0):
            lines = range(node.lineno, (node.end_lineno or 0) + 1)
            found = lines if len(found) == 1 or len(lines) < len(found) else found
    return found


def test_every_race_and_order_comment_names_a_test_that_exists() -> None:
    """A comment of the same function may name it: two ends of one race have one test."""
    missing = []
    for module, path in sources().items():
        comments = comments_of(path)
        for number, first in comments.items():
            if not first.startswith(("RACE:", "ORDER:")):
                continue
            named = set(re.findall(r"\btest_\w+", whole(comments, number)))
            if not named:
                lines = around(module, number)
                text = " ".join(comment for line, comment in comments.items() if line in lines)
                named = set(re.findall(r"\btest_\w+", text))
            if not named & known_tests():
                missing.append(f"{path.relative_to(ROOT)}:{number}: {' '.join(sorted(named)) or 'names no test'}")
    assert not missing, "\n".join(missing)


def test_every_test_that_the_proof_names_exists() -> None:
    named = set(re.findall(r"\btest_\w+", (ROOT / "tests" / "PROOF.md").read_text()))
    assert named
    assert not named - known_tests()


def test_no_file_names_a_place_of_the_machine_it_was_written_on() -> None:
    # At the root: a queue of ddmq has a directory work/ too.
    places = re.compile(rb"(?<![\w.})\]*/])(?:/wo" + rb"rk/\w|/opt/" + rb"venv|/tmp/br" + rb"ief)")
    for path in project_files():
        found = places.search(path.read_bytes())
        assert found is None, f"{path.relative_to(ROOT)} names {found[0]!r}"


# ---- words that must agree


@functools.cache
def commands() -> tuple[str, ...]:
    """The names that ``orchestrator --help`` lists."""
    done = run("orchestrator", "--help")
    assert done.returncode == 0, done.stdout
    listed = done.stdout.partition("Commands:")[2]
    found = tuple(re.findall(r"(?m)^  ([a-z][a-z-]*)\b", listed))
    assert "run" in found, done.stdout
    return found


def test_each_command_has_its_help() -> None:
    broken = []
    for command in commands():
        done = run("orchestrator", command, "--help")
        if done.returncode != 0 or "Usage:" not in done.stdout:
            broken.append(f"{command}: {done.stdout.strip()}")
    assert not broken, "\n".join(broken)


def code_blocks(text: str) -> Iterator[str]:
    """The lines of all fenced blocks, continued lines joined."""
    for block in re.findall(r"(?ms)^ *```[^\n]*\n(.*?)^ *```", text):
        yield from block.replace("\\\n", " ").splitlines()


def used_commands(text: str) -> set[str]:
    """The words that follow the program's name, in code blocks and in inline code."""
    lines = [*code_blocks(text), *re.findall(r"`([^`\n]+)`", text)]
    found = set()
    for line in lines:
        for part in re.split(r"&&|\|\||[;|]", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                words = part.split()
            words = [word for word in words if word not in ("$", "#", "sudo")]
            if len(words) > 1 and Path(words[0]).name == "orchestrator" and re.fullmatch("[a-z][a-z-]*", words[1]):
                found.add(words[1])
    return found


@pytest.mark.parametrize("file", ["README.md", "deploy/OPERATIONS.md"])
def test_every_command_that_a_document_shows_exists(file: str) -> None:
    used = used_commands(text_of(ROOT / file, "people begin there"))
    assert used, f"{file} shows no command"
    assert used <= set(commands()), f"{file} shows {sorted(used - set(commands()))}"


def test_readme_has_a_test_command_that_ci_can_run() -> None:
    text = text_of(ROOT / "README.md", ".ci/run takes the test command from it")
    block = re.match(r"\s*```[^\n]*\n(.*?)```", text.partition("<!-- test-command -->")[2], re.DOTALL)
    assert block, "README.md needs <!-- test-command --> right above a code block"
    assert "pytest" in block[1], block[1]


def test_readme_names_every_configuration_key_as_the_program_does() -> None:
    text = text_of(ROOT / "README.md", "it holds the table of keys between <!-- config-reference --> and <!-- end -->")
    done = run("orchestrator", "config", "reference", "--markdown")
    assert done.returncode == 0, done.stdout
    assert between(text, "<!-- config-reference -->", "<!-- end -->") == done.stdout.strip()


def test_signal_table_of_the_operators_is_the_one_the_master_obeys() -> None:
    signals = importlib.import_module("orchestrator.master").SIGNALS
    text = text_of(ROOT / "deploy" / "OPERATIONS.md", "it has the signal table")
    table = between(text, "<!-- signals -->", "<!-- end -->")
    rows = re.findall(r"(?m)^\| ([A-Z][A-Z0-9]+) \| (\w+) \|", table)
    assert dict(rows) == {number.name.removeprefix("SIG"): word for number, word in signals.items()}
    assert len(rows) == len(signals)


def test_links_between_documents_lead_somewhere() -> None:
    for path in project_files():
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
                if "://" not in target and not target.startswith("mailto:"):
                    assert (path.parent / target).exists(), f"{path.relative_to(ROOT)} links to {target}"


def test_changelog_tells_of_the_version_that_is_built() -> None:
    version = re.search(r'(?m)^version = "([^"]+)"', text_of(ROOT / "pyproject.toml", "it has the version"))
    assert version
    assert f"## [{version[1]}]" in text_of(ROOT / "CHANGELOG.md", "it says what has changed")


def test_protocol_text_shows_names_that_the_program_reads_so() -> None:
    """The worked examples of SPOOL.md, read by names.py."""
    text = text_of(ROOT / "workers" / "queues" / "SPOOL.md", "it is the protocol")
    for name, digits in re.findall(r'check\("([^"\\]+)"\) = ([0-9a-f]{4})', text):
        assert names.check(name) == digits, name
    found = re.findall(r"(?m)(?<![\w.])(?:[a-z]+/)?(?:O\d/)?(\d{10}\.)?(t\dc\d-[0-9a-f]{22}~[\w.]+)", text)
    marked = [file for _, file in found if "0" * 22 not in file]
    assert len(marked) >= 8, marked
    for file in marked:
        assert names.parse(file).token, file
    assert not names.parse("t0c0-" + "0" * 22 + "~x").token
    lease = re.search(r"(?m)^(\S+)\s+in leases/", text)
    owner = re.search(r"(?m)^(\S+)\s+in pending/: its worker 3", text)
    assert lease is not None
    assert names.parse_lease(lease[1])
    assert owner is not None
    assert names.parse_owner(owner[1])
