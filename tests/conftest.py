"""Fixtures that rooms share, and which tests go first.

What fixtures are made of lies in `tests/support`.
"""

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import ktrace.__main__ as command
from ktrace.config import RunConfig
from ktrace.config.compose import composed
from ktrace.lm.digests import CACHE
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from tests.support.command import Ended, Ktrace
from tests.support.configs import Compose
from tests.support.known_facts import save_random_model, write_known_facts
from tests.support.models import micro_llama
from tests.support.proof import skip_proof
from tests.support.runs import N_STORED, STATES, Runs, facts_in_parts

torch.set_num_threads(1)

# A shell that was told to run the tests beside it has them ignore Ctrl-C, and what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where the longest tests are, the longest first: short ones then fill what is left at the end.
LONG = (
    "tests/durability/",
    "tests/slurm/",
    "tests/analysis/test_report_browser.py",
    "tests/test_notebook.py",
    "tests/test_gallery.py",
    "tests/pipeline/test_without_torch.py",
    "tests/pipeline/test_end_to_end.py",
    "tests/test_benchmarks.py",
    "tests/tracing/test_families.py",
    "tests/tracing/test_suffix.py",
    "tests/tracing/test_placed_models.py",
    "tests/pipeline/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: the processes that run the tests take work from each other's end."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=rank)  # a stable sort: tests that share a fixture stay together


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave nothing in the cache of who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def llama() -> LanguageModel:
    """A sharpened random Llama in float32."""
    return language_model(micro_llama())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with its tokenizer, saved as transformers does."""
    return save_random_model(tmp_path_factory.mktemp("models") / "random", seed=0)


@pytest.fixture(scope="session")
def facts_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts that the random model "knows": each answer is what it predicts; one is wrong."""
    path = tmp_path_factory.mktemp("facts") / "known.jsonl"
    return write_known_facts(path, [model_folder])


@pytest.fixture(scope="session")
def own(model_folder: Path, facts_file: Path) -> tuple[str, ...]:
    """A model and facts that are fine; a later override takes their place."""
    return (
        "model=auto",
        f"model.path={model_folder}",
        "dataset=file",
        f"dataset.path={facts_file}",
    )


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(own: tuple[str, ...], tmp_path: Path) -> Compose:
    """Compose a config for the random model, with overrides."""

    def make(*overrides: str) -> RunConfig:
        return composed([*own, f"output_dir={tmp_path / 'out'}", "noise.samples=3", *overrides])

    return make


@pytest.fixture
def ktrace(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Ktrace]:
    """`python -m ktrace ...` in this process and an empty folder."""
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> Ended:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["ktrace", *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            command.main()
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        if isinstance(code, str):  # as the interpreter does
            return Ended(1, captured.out, f"{captured.err}{code}\n")
        return Ended(code if isinstance(code, int) else 0, captured.out, captured.err)

    yield run
    # Hydra gave the root logger a handler on a stream that is gone after this test.
    root.handlers[:], root.level = handlers, level
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def drawn_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in the test's own process, where it may look at them."""
    monkeypatch.setattr("ktrace.analysis.figures.processes._processors", lambda: 1)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of an analysis; tests of numbers and stores do without."""
    from tests.support.figures import NO_FIGURES  # pandas and matplotlib, where they are needed

    monkeypatch.setattr("ktrace.analysis.analyze.draw_figures", lambda *_, **__: NO_FIGURES)


@pytest.fixture
def no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suffix engine without its proof on the model at hand."""
    skip_proof(monkeypatch.setattr)


@pytest.fixture(scope="session")
def runs(own: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Starts runs over the random model and its seven facts, up to `stage=restore`."""
    common = (*own, "noise.samples=2", "mediator=all", "stage=restore", *STATES)
    with Runs(tmp_path_factory.mktemp("runs"), *common) as started:
        yield started


@pytest.fixture(scope="session")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of such a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    ended = runs.run(f"output_dir={output}")
    assert ended.code == 0, ended.output
    assert facts_in_parts(output) == N_STORED
    return output
