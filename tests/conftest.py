"""Small models with their tokenizers, made on the spot: nothing here needs the network."""

import json
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Micro models gain nothing from threads, and several test processes share the cores.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

import ktrace.__main__ as command
from ktrace.config import RunConfig
from ktrace.config.compose import composed
from ktrace.facts import Span
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.pipeline import sweep
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the published data beside the checkout (../shared)"
)

VOCABULARY = 96
Part = TypeVar("Part")

torch.set_num_threads(1)


def sharpened(model: Any, seed: int = 0, scale: float = 2.0) -> Any:
    """Draw larger weights, so that effects are large enough to tell a right cell from a wrong one.

    Freshly initialised models predict every token alike: any bug would pass on them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            fan_in = weight.shape[-1]
            drawn = torch.randn(weight.shape, generator=generator)
            # Embeddings often serve as the head too: not so large that rounding of logits shows.
            gain = scale if "embed" not in name and "wte" not in name else 0.5 * fan_in**0.5
            weight.copy_(drawn * gain / fan_in**0.5)
    return model


def micro_llama(n_layers: int = 4, seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """A sharpened random Llama."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(seed)
    return sharpened(AutoModelForCausalLM.from_config(config), seed)


def known_case(
    lm: LanguageModel, seed: int, n_positions: int = 7, start: int = 1, stop: int = 4
) -> Case:
    """A prompt of random token ids, with the model's own prediction as the answer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCABULARY, (n_positions,), generator=generator).tolist()
    answer = clean_run(lm, tuple(ids)).predicted_ids
    return Case(seed, tuple(ids), Span(start, stop), answer)


@pytest.fixture(scope="session")
def llama() -> LanguageModel:
    """A sharpened random Llama in float32."""
    return language_model(micro_llama())


class _Thing:
    """Can be referred to weakly."""


def signalled_where_it_is_dropped(number: int) -> None:
    """Signal this process while a weak reference's callback runs, whose exceptions Python drops."""
    thing = _Thing()
    kept = weakref.ref(thing, lambda reference: os.kill(os.getpid(), number))
    del thing
    assert kept() is None


def train_tokenizer(texts: list[str], vocabulary: int = 420) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that puts a BOS token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


PROMPTS = [
    ("The old lighthouse at {} stands in", "Cape Morrow"),
    ("{} is a town in the land of", "Upper Tallow"),
    ("In the story, {} plays the game of", "Captain Ferris Vane"),
    ("The river {} ends its way in", "Lissom"),
    ("People in {} speak", "the Hollow Isles"),
    ("The author of {} was born in", "A Quiet Harvest"),
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with its tokenizer, saved as transformers does."""
    return save_random_model(tmp_path_factory.mktemp("models") / "random", seed=0)


def save_random_model(folder: Path, seed: int) -> Path:
    """Save a sharpened random Llama and a tokenizer."""
    tokenizer = train_tokenizer([template.format(subject) for template, subject in PROMPTS])
    model = micro_llama(3, seed=seed, vocabulary=len(tokenizer))
    # Only whole words are ever predicted, so that every prediction can be written as an answer.
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    with torch.no_grad():
        for token, piece in enumerate(pieces):
            if not (piece.startswith("Ġ") and piece[1:].isalpha() and len(piece) > 3):
                model.lm_head.weight[token] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def facts_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts that the random model "knows": each answer is what it predicts; one is wrong."""
    path = tmp_path_factory.mktemp("facts") / "known.jsonl"
    return write_known_facts(path, [model_folder])


def write_known_facts(path: Path, folders: list[Path], n_answer: int = 1) -> Path:
    """Write facts whose answers the models predict, and a last one that none predicts."""
    from transformers import AutoTokenizer

    from ktrace.lm.tokens import answer_token_ids, encode_prompt

    records = []
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        for template, subject in PROMPTS:
            prompt = template.format(subject)
            ids = encode_prompt(tokenizer, prompt).input_ids
            predicted: tuple[int, ...] = ()
            for _ in range(n_answer):
                logits = model(torch.tensor([[*ids, *predicted]])).logits[0, -1]
                predicted = (*predicted, int(logits.argmax()))
            answer = tokenizer.decode(predicted).strip()
            assert answer_token_ids(tokenizer, prompt, answer) == predicted
            records.append((prompt, subject, answer))
    records.append((PROMPTS[0][0].format("Port Nowhere"), "Port Nowhere", "Nowhere"))
    with path.open("w") as stream:
        for number, (prompt, subject, answer) in enumerate(records):
            record = {
                "known_id": 100 + number,
                "prompt": prompt,
                "subject": subject,
                "attribute": answer,
            }
            stream.write(json.dumps(record) + "\n")
    return path


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(model_folder: Path, facts_file: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Compose a config for the random model, with overrides."""

    def make(*overrides: str) -> RunConfig:
        return composed(
            [
                "model=auto",
                f"model.path={model_folder}",
                "dataset=file",
                f"dataset.path={facts_file}",
                f"output_dir={tmp_path / 'out'}",
                "noise.samples=3",
                *overrides,
            ]
        )

    return make


def configured(part: type[Part], **keys: Any) -> Part:
    """A part of the config with some keys, given as on the command line."""
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(part), keys))
    assert isinstance(found, part)
    return found


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Ktrace = Callable[..., Ended]


@pytest.fixture
def ktrace(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Ktrace]:
    """`python -m ktrace ...` in this process and an empty folder."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it; this undoes that
    monkeypatch.setattr(command, "_WANTS_TRACEBACK", False)
    monkeypatch.setattr(sweep, "_failed", [])
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


@pytest.fixture
def own(model_folder: Path, facts_file: Path) -> tuple[str, ...]:
    """A model and facts that are fine; a later override takes their place."""
    return (
        "model=auto",
        f"model.path={model_folder}",
        "dataset=file",
        f"dataset.path={facts_file}",
    )


def refused(ended: Ended, *parts: str) -> None:
    """One line on stderr, with these parts."""
    assert ended.code == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("ktrace: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for part in parts:
        assert part in ended.stderr


@pytest.fixture(scope="session")
def runs(
    model_folder: Path, facts_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Starts runs over the random model and its seven facts, up to `stage=restore`."""
    from durability.runs import Runs

    common = (
        "model=auto",
        f"model.path={model_folder}",
        "dataset=file",
        f"dataset.path={facts_file}",
        "noise.samples=2",
        "mediator=all",
        "stage=restore",
    )
    with Runs(tmp_path_factory.mktemp("runs"), *common) as started:
        yield started


@pytest.fixture(scope="session")
def whole(runs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of such a run that nobody disturbed."""
    from durability.runs import N_STORED, facts_in_parts

    output = tmp_path_factory.mktemp("whole")
    ended = runs.run(f"output_dir={output}")
    assert ended.code == 0, ended.output
    assert facts_in_parts(output) == N_STORED
    return output
