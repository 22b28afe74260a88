"""Which versions ktrace works with: Pythons, and the lower bounds of its dependencies.

    python -m benchmarks.compat --write docs/compatibility.md
    python -m benchmarks.compat --python 3.12 --folder /tmp/environments

For each Python that is found here, an environment with the tested versions; for the oldest, one
with the lowest that `pyproject.toml` allows. Each runs the same tests. uv makes the environments,
one at a time, in a folder that is removed afterwards, unless one is given: PyTorch with CUDA takes
5 GB. A Python that is not found, and an environment that cannot be made, are said to be so.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Every room, in a minute or two on two cores.
TESTS = (
    "tests/config/test_compose.py",
    "tests/facts/test_load.py",
    "tests/store/test_part.py",
    "tests/tracing/test_micro_model.py",
    "tests/tracing/test_golden.py",
    "tests/analysis/test_analyze.py",
)
_TESTED, _LOWEST = "tested", "lowest"
_MINUTES = 30  # for an environment, and for its tests
_HEAD = (
    "| Python | Versions | torch | transformers | numpy | pandas | Tests |\n" + "| --- " * 7 + "|\n"
)
_TABLED = ("torch", "transformers", "numpy", "pandas")


@dataclass(frozen=True)
class Case:
    """An environment: which Python, and `tested` or `lowest` versions."""

    python: str
    versions: str

    @property
    def constraints(self) -> Path:
        """Of the tested versions: a Python that some of them do not support has its own."""
        own = ROOT / f"constraints-{self.python}.txt"
        return own if own.is_file() else ROOT / "constraints.txt"


@dataclass(frozen=True)
class Tried:
    """What became of a case.

    Attributes:
        case: which.
        found: installed versions by package; none where there is no environment.
        said: how the tests ended, or why there were none.
        passed: whether all is well; None where the Python is missing.
        failed: tests that did not pass.
    """

    case: Case
    found: dict[str, str]
    said: str
    passed: bool | None
    failed: Sequence[str] = ()


def interpreter(version: str) -> Path | None:
    """A Python of a version, from the path or from pyenv."""
    names = (f"python{version}", "python3", "python")
    paths = [Path(found) for name in names if (found := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    paths += sorted(pyenv.glob(f"{version}*/bin/python"))
    for path in paths:
        asked = [str(path), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        told = subprocess.run(asked, capture_output=True, text=True)
        if told.returncode == 0 and told.stdout.strip() == version:
            return path
    return None


def make(case: Case, python: Path, environment: Path) -> str:
    """Make an environment; returns why that failed, or nothing."""
    uv = [sys.executable, "-m", "uv", "--quiet"]
    if not environment.exists():
        subprocess.run([*uv, "venv", "--python", str(python), str(environment)], check=True)
    chosen = ["--constraint", str(case.constraints)]
    if case.versions == _LOWEST:
        chosen = ["--resolution", "lowest-direct"]
    tools = ["pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100"]
    wanted = ["--requirement", str(ROOT / "pyproject.toml"), *tools]
    into = ["pip", "install", "--python", str(environment / "bin" / "python")]
    ended = subprocess.run(
        [*uv, *into, *chosen, *wanted], capture_output=True, text=True, timeout=_MINUTES * 60
    )
    return " ".join(ended.stderr.split()) if ended.returncode else ""


def installed(environment: Path) -> dict[str, str]:
    """Versions by package."""
    python = str(environment / "bin" / "python")
    frozen = [sys.executable, "-m", "uv", "pip", "freeze", "--python", python]
    told = subprocess.run(frozen, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^([\w.-]+)==(.+)$", told, re.MULTILINE))


def run_tests(environment: Path, tests: Sequence[str]) -> tuple[bool, str, list[str]]:
    """Whether tests pass in an environment, pytest's last line, and those that failed."""
    own = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [str(environment / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=own | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=_MINUTES * 60,
    )
    if ended.returncode:
        print(ended.stdout[-6000:], ended.stderr[-2000:], file=sys.stderr)
    last = (ended.stdout.strip() or ended.stderr.strip()).splitlines()[-1]
    failed = re.findall(r"^FAILED tests/(\S+)", ended.stdout, re.MULTILINE)
    return ended.returncode == 0, re.sub(r" in .*| ?=+ ?", "", last), failed


def tried(case: Case, folder: Path, tests: Sequence[str] = TESTS) -> Tried:
    """Make an environment and run the tests in it."""
    python = interpreter(case.python)
    if python is None:
        return Tried(case, {}, "not tried: this Python was not found", None)
    environment = folder / f"{case.python}-{case.versions}"
    try:
        if why := make(case, python, environment):
            return Tried(case, {}, f"no environment: {why}", False)
        passed, said, failed = run_tests(environment, tests)
    except subprocess.TimeoutExpired:
        return Tried(case, {}, f"did not end within {_MINUTES} minutes", False)
    return Tried(case, installed(environment), said, passed, failed)


def table(results: Sequence[Tried]) -> str:
    """The results in Markdown."""
    rows = []
    for one in results:
        versions = [one.found.get(name, "") for name in _TABLED]
        words = {_TESTED: f"`{one.case.constraints.name}`", _LOWEST: "lower bounds"}
        rows.append([one.case.python, words[one.case.versions], *versions, one.said])
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(results: Sequence[Tried]) -> str:
    """`docs/compatibility.md`."""
    today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    tests = ", ".join(f"`{name.removeprefix('tests/')}`" for name in TESTS)
    failed = "".join(
        f"\nFailed on {one.case.python} with {one.case.versions} versions: "
        f"{', '.join(f'`{name}`' for name in one.failed)}.\n"
        for one in results
        if one.failed
    )
    lowest = [one for one in results if one.case.versions == _LOWEST and one.found]
    bounds = "".join(
        f"\nThe lower bounds that were tried: {', '.join(_direct(one))}.\n" for one in lowest
    )
    return (
        "# Compatibility\n\nWhich Pythons and versions ktrace was tried with. `make compat` makes "
        "this page: an environment\nfor each Python with the versions of `constraints.txt` "
        "(`constraints-3.10.txt` where some of them\nneed a newer one), and one with the lowest "
        "that `pyproject.toml` allows.\n\n"
        f"{table(results)}{failed}{bounds}\n"
        f"Tried on {today}, {platform.system()} {platform.machine()}, with {tests} "
        "of `tests/`.\nCI runs all tests on one Python ([versions](../CONTRIBUTING.md#versions)).\n"
    )


def _direct(one: Tried) -> Iterator[str]:
    """The versions of what `pyproject.toml` names itself."""
    text = (ROOT / "pyproject.toml").read_text("utf-8").split("\ndependencies = [")[1]
    for name in re.findall(r'^    "([\w-]+)[><=]', text.split("\n]")[0], re.MULTILINE):
        yield f"{name} {one.found.get(name, '?')}"


def main() -> None:
    """Try all, print the table, and write the page if asked; exits 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions such as 3.12")
    parser.add_argument("--folder", type=Path, help="keeps the environments, and takes those there")
    parser.add_argument("--write", type=Path, help="the page that is written")
    asked = parser.parse_args()
    cases = [Case(version, _TESTED) for version in asked.python]
    cases.append(Case(asked.python[0], _LOWEST))
    results = []
    with ExitStack() as stack:
        kept = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for case in cases:
            began = time.monotonic()
            results.append(tried(case, kept))
            seconds = time.monotonic() - began
            print(
                f"{case.python} {case.versions}: {results[-1].said} ({seconds:.0f} s)", flush=True
            )
            if asked.folder is None:
                shutil.rmtree(kept / f"{case.python}-{case.versions}", ignore_errors=True)
    print(table(results), end="")
    if asked.write:
        asked.write.write_text(page(results), "utf-8")
    if any(one.passed is False for one in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
