"""The examples in the public docstrings run as they stand, and give what they show."""

import doctest
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ktrace
from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.places import ROOT
from tests.support.proof import skip_proof

# The names that examples find, beside those that they make themselves: none but the package.
NAMES = {"ktrace": ktrace}
LOOSE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def beside_a_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Work beside `outputs/tiny/facts/gaussian-x3-n10-seed1`: 12 facts, hidden states and MLPs."""
    with pytest.MonkeyPatch.context() as patch:
        skip_proof(patch.setattr)
        patch.setattr("ktrace.analysis.figures.processes._processors", lambda: 1)
        patch.setattr("ktrace.analysis.figures.draw._whole", only_the_first_figure)
        patch.chdir(tmp_path_factory.mktemp("doctests"))
        Path("data").mkdir()
        some = (ROOT / "data" / "facts.jsonl").read_text("utf-8").splitlines()[:12]
        Path("data/facts.jsonl").write_text("\n".join(some), "utf-8")
        run(composed(["dataset.limit=12", "mediator.names=[hidden,mlp]"]))
        # Each example loads the embedded model; once is enough.
        patch.setattr(ktrace, "load_model", cache(ktrace.load_model), raising=False)
        yield


def only_the_first_figure(found, into, shown, look, *_):  # type: ignore[no-untyped-def]
    """Figures take most of an analysis, and examples name one."""
    roles = found.aie["role"].unique()
    into.add(
        *("aie", "heatmaps.aie_heatmaps", found.aie_in(look.metric)),
        **{"keys": shown, "roles": roles, "title": "", "look": look},
    )


def examples() -> list[doctest.DocTest]:
    """Of every public name, and of the methods of those that are classes."""
    finder = doctest.DocTestFinder(exclude_empty=False)
    found: list[doctest.DocTest] = []
    for name in ktrace.__all__:
        value = getattr(ktrace, name)
        found += finder.find(value, name, module=inspect.getmodule(value), globs=NAMES)
    return [one for one in found if "._" not in one.name]


EXAMPLES = {one.name: one for one in examples()}
WITH_EXAMPLES = sorted(name for name, one in EXAMPLES.items() if one.examples)


@pytest.mark.usefixtures("beside_a_run")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_show(name: str) -> None:
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=LOOSE, verbose=False)
    if name.startswith("to_xarray"):
        pytest.importorskip("xarray")
    found = runner.run(EXAMPLES[name], out=told.append, clear_globs=False)
    assert found.attempted > 0
    assert found.failed == 0, "".join(told)


@pytest.mark.usefixtures("beside_a_run")
@pytest.mark.parametrize("document", ["README.md", "docs/outputs.md"])
def test_what_documents_show_from_python_runs(document: str) -> None:
    text = (ROOT / document).read_text("utf-8").split("\n## From Python\n")[1]
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.+?)```", text, re.DOTALL)[0], names)
    assert isinstance(names["run"], ktrace.Run)


def test_every_public_name_has_an_example() -> None:
    without = {"KtraceError"}
    assert set(ktrace.__all__) - {*WITH_EXAMPLES} <= without
    for name in ("Trace", "Run"):
        methods = [
            f"{name}.{method}"
            for method, _ in inspect.getmembers(getattr(ktrace, name), inspect.isfunction)
            if method[0] != "_"
        ]
        assert len(methods) > 4
        assert [method for method in methods if not EXAMPLES[method].docstring] == []
