"""The import rules between the rooms, and where torch may come in."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ktrace
from ktrace.terms import MEDIATOR_NAMES, METRICS, ROLES, SITES
from ktrace.tracing.mediators import make_mediator

PACKAGE = Path(ktrace.__file__).parent

# Room or module -> what of ktrace it may import, as CONTRIBUTING.md says. In a room all is allowed.
GROUND = {"errors", "terms", "files", "redaction"}
ROOMS: dict[str, set[str]] = {
    "redaction": set(),
    "errors": {"redaction"},
    "terms": set(),
    "files": {"errors"},
    "config": {"errors", "terms", "redaction"},
    "facts": GROUND | {"config"},
    "lm": GROUND | {"config"},
    "tracing": GROUND | {"config", "facts", "lm"},
    "store": GROUND,
    "analysis": GROUND | {"store"},
    "pipeline": GROUND | {"config", "facts", "lm", "tracing", "store", "analysis"},
    "api": GROUND | {"config", "facts", "lm", "tracing", "store", "analysis"},
    "__main__": {"pipeline", "config", "errors", "redaction"},
    # The public names, which load lazily.
    "": {"api", "analysis", "errors"},
}
MOST_LOOSE_MODULES = 6
# Rooms that name types of modules which they load late, or not at all.
LATE_ROOMS = {"", "pipeline"}


@dataclass(frozen=True)
class Import:
    """One import of a module.

    Attributes:
        target: the full name of what is imported.
        top_level: whether it runs when the importing module is imported.
        typing_only: whether it stands under `if TYPE_CHECKING`.
    """

    importer: str
    target: str
    top_level: bool
    typing_only: bool


def module_names() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("ktrace", *path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports_of(name: str, source: str, *, is_package: bool = False) -> list[Import]:
    """Every import statement of a module, wherever it stands."""
    found: list[Import] = []

    def visit(node: ast.AST, top_level: bool, typing_only: bool) -> None:
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = name.split(".")
                up = up[: len(up) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            targets = []
        found.extend(Import(name, target, top_level, typing_only) for target in targets)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                visit(child, top_level, True)
            for child in node.orelse:
                visit(child, top_level, typing_only)
            return
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, top_level and not inside, typing_only)

    visit(ast.parse(source), True, False)
    return found


def is_inside(target: str, package: str) -> bool:
    """Whether a dotted name is a package or lies in it."""
    return target == package or target.startswith(f"{package}.")


def room_of(target: str, modules: dict[str, Path]) -> str:
    """First part of the path inside the package; empty for names of `ktrace/__init__.py` itself."""
    parts = target.split(".")
    return parts[1] if len(parts) > 1 and f"ktrace.{parts[1]}" in modules else ""


def violations(imports: list[Import], modules: dict[str, Path]) -> list[str]:
    """Imports that the table forbids."""
    wrong = []
    for item in imports:
        room = room_of(item.importer, modules)
        if not is_inside(item.target, "ktrace"):
            continue
        wanted = room_of(item.target, modules)
        if wanted != room and wanted not in ROOMS[room]:
            wrong.append(f"{item.importer} imports {item.target}")
        if item.typing_only and room not in LATE_ROOMS:
            wrong.append(f"{item.importer} imports {item.target} for types only")
    return wrong


MODULES = module_names()
IMPORTS = [
    item
    for name, path in MODULES.items()
    for item in imports_of(name, path.read_text("utf-8"), is_package=path.name == "__init__.py")
]


def test_every_module_stands_in_the_table() -> None:
    rooms = {room_of(name, MODULES) for name in MODULES}
    assert rooms == ROOMS.keys()
    assert len(MODULES) > 25


def test_few_modules_lie_loose() -> None:
    loose = {name for name, path in MODULES.items() if path.parent == PACKAGE}
    assert "ktrace.errors" in loose
    assert len(loose) <= MOST_LOOSE_MODULES


def test_rooms_import_only_what_the_table_allows() -> None:
    assert violations(IMPORTS, MODULES) == []


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        ("ktrace.store.part", "from ktrace.analysis.rows import rows"),
        ("ktrace.store.part", "from ktrace import pipeline"),
        ("ktrace.store.part", "from ..lm import hooks"),
        ("ktrace.store.part", "from ktrace.config import RunConfig"),
        ("ktrace.facts.load", "def f():\n    import ktrace.lm.load"),
        ("ktrace.lm.load", "from ktrace.tracing import noise"),
        ("ktrace.tracing.noise", "from ktrace.store import Store"),
        ("ktrace.analysis.effects", "from ktrace.facts import Span"),
        ("ktrace.analysis.effects", "from ktrace.config import RunConfig"),
        ("ktrace.analysis.effects", "import ktrace"),
        ("ktrace.config.compose", "from ktrace.files import new_file"),
        ("ktrace.pipeline.run", "from ktrace.api.trace import trace"),
        ("ktrace.api", "from ktrace.pipeline.run import run"),
        ("ktrace.files", "from ktrace.config import RunConfig"),
        ("ktrace.errors", "from ktrace.terms import METRICS"),
        (
            "ktrace.tracing.noise",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ktrace.lm import hooks",
        ),
    ],
)
def test_a_forbidden_import_is_seen(importer: str, statement: str) -> None:
    assert violations(imports_of(importer, statement), MODULES) != []


def loaded_modules(target: str) -> list[str]:
    """The module that an imported name is, or lies in."""
    return [target] if target in MODULES else [target.rpartition(".")[0]]


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """A cycle of the graph, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if cycle := walk(other, [*path, name]):
                return cycle
        done.add(name)
        return []

    for name in sorted(edges):
        if cycle := walk(name, []):
            return cycle
    return []


def test_modules_import_each_other_in_no_circle() -> None:
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for item in IMPORTS:
        # `ktrace/__init__.py` loads lazily, so what it names for types is no edge.
        if not item.typing_only:
            edges[item.importer] |= {m for m in loaded_modules(item.target) if m in MODULES}
    assert sum(map(len, edges.values())) > 30
    assert find_cycle(edges) == []
    edges["ktrace.errors"].add("ktrace.pipeline.run")
    assert find_cycle(edges) != []


WITHOUT_TORCH = [
    "ktrace",
    "ktrace.config",
    "ktrace.__main__",
    "ktrace.pipeline.run",
    *(name for name in MODULES if room_of(name, MODULES) in ("store", "analysis")),
]


def test_no_torch_at_the_top_of_light_modules() -> None:
    heavy = [
        item.importer
        for item in IMPORTS
        if item.importer in WITHOUT_TORCH
        and item.top_level
        and not item.typing_only
        and (is_inside(item.target, "torch") or is_inside(item.target, "transformers"))
    ]
    assert heavy == []


def test_logging_libraries_are_imported_where_they_are_asked_for() -> None:
    libraries = ("trackio", "wandb", "mlflow")
    named = {
        (item.importer, library, item.top_level)
        for item in IMPORTS
        for library in libraries
        if is_inside(item.target, library)
    }
    assert named == {("ktrace.pipeline.loggers", library, False) for library in libraries}


def test_analysis_never_names_torch() -> None:
    named = [
        item
        for item in IMPORTS
        if room_of(item.importer, MODULES) in ("analysis", "store")
        and any(is_inside(item.target, name) for name in ("torch", "transformers", "tokenizers"))
    ]
    assert named == []


def test_light_modules_load_no_torch() -> None:
    """Also not through what they import: one process loads them all, and says who was first."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert name in sys.modules\n"
        "    heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    command = [sys.executable, "-c", program, *WITHOUT_TORCH]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_import_is_lazy_and_names_are_found() -> None:
    program = (
        "import sys, ktrace\n"
        "light = set(sys.modules)\n"
        "assert not {'pandas', 'h5py', 'torch'} & light, light\n"
        "assert ktrace.KtraceError is ktrace.errors.KtraceError\n"
        "assert set(ktrace.__all__) <= set(dir(ktrace))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in ktrace.__all__:
        assert getattr(ktrace, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_this"):
        ktrace.nothing_like_this  # noqa: B018


WORDS = {"METRICS": METRICS, "SITES": SITES, "ROLES": ROLES, "MEDIATOR_NAMES": MEDIATOR_NAMES}


def listed_words(source: str) -> list[str]:
    """Which of the field's lists a module spells out: in whatever order, under whatever name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            texts = {item.value for item in node.elts if isinstance(item, ast.Constant)}
            found += [name for name, words in WORDS.items() if texts == set(words)]
    return found


def test_the_fields_words_are_defined_once() -> None:
    assert listed_words('x = ["mlp", "attn", "hidden"]') == ["SITES"]
    repeated = {
        name: words
        for name, path in MODULES.items()
        if name != "ktrace.terms" and (words := listed_words(path.read_text("utf-8")))
    }
    assert repeated == {}
    for name in MEDIATOR_NAMES:
        assert make_mediator(name, 1).name == name


MOST_LINES, MOST_PARAMETERS, LONGEST_MODULE, MOST_ANY = 50, 6, 350, 90
# Functions with more parameters, and why.
MANY_PARAMETERS = {
    "ktrace.analysis.analyze.analyze": "what a config asks of it; the room never sees a config",
    "ktrace.analysis.averaged_run.average_run": "likewise, of what any analysis begins with",
    "ktrace.analysis.activations.load_activations": "the public face: which states, by name",
    "ktrace.analysis.compare.compare": "likewise, of several runs",
    "ktrace.api.many.trace_many": "the public face: what a person may ask about facts, by name",
    "ktrace.api.trace.trace": "likewise, about one prompt",
}


def functions_of(name: str, path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield f"{name}.{node.name}", node


def length_of(function: ast.FunctionDef) -> int:
    """Lines, the docstring aside."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def parameters_of(function: ast.FunctionDef) -> int:
    given = function.args
    names = [entry.arg for entry in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_functions_fit_on_a_screen_and_take_few_things() -> None:
    found = [pair for name, path in MODULES.items() for pair in functions_of(name, path)]
    assert len(found) > 300
    assert {name for name, function in found if length_of(function) > MOST_LINES} == set()
    many = {name for name, function in found if parameters_of(function) > MOST_PARAMETERS}
    assert many == MANY_PARAMETERS.keys()


def test_modules_are_short_and_typed() -> None:
    texts = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    long = {name: text.count("\n") for name, text in texts.items()}
    assert {name: n for name, n in long.items() if n > LONGEST_MODULE} == {}
    assert sum(len(re.findall(r"\bAny\b", text)) for text in texts.values()) <= MOST_ANY
