"""The one place where the rooms meet: which stage runs when, and what it reuses.

torch is imported by the stages that run a model, never by the analysis stage.
"""

import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ktrace.config import Answer, ModelConfig, RunConfig, Stage
from ktrace.console import progress
from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span, load_facts, role_of_positions, token_span
from ktrace.lm.families import ModulePaths
from ktrace.lm.prompt import EncodedPrompt, answer_token_ids, encode_prompt, subject_token_ids
from ktrace.lm.source import ModelSource, find_model
from ktrace.settings import (
    dataset_key,
    model_fingerprint,
    noise_fingerprint,
    noise_key,
    noise_multiple,
)
from ktrace.store import METRICS, RunFolders, Store
from ktrace.store.files import require_writable, write_text
from ktrace.tracing.mediators import Mediator, make_mediator

if TYPE_CHECKING:
    from ktrace.analysis.analyze import Analysis
    from ktrace.lm.load import LanguageModel
    from ktrace.tracing.engine import Baseline, Case, Engine
    from ktrace.tracing.noise import MeasuredNoise

log = logging.getLogger(__name__)

_PACKAGES = ("ktrace", "torch", "transformers", "tokenizers", "numpy", "h5py", "hydra-core")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        folder: `<output_dir>/<model>/<dataset>/<noise>`.
        mediator_keys: what the config asked for.
        analysis: None where the run stopped before it.
        counts: facts by state, as far as the run got.
    """

    folder: Path
    mediator_keys: tuple[str, ...]
    analysis: "Analysis | None"
    counts: Mapping[str, int]


def run(config: RunConfig) -> Outcome:
    """Run the stages up to `config.stage`, doing only what is not yet stored.

    Raises:
        KtraceError: something the user can mend.
    """
    mediators = [make_mediator(name, config.mediator.window) for name in config.mediator.names]
    mediators = list({mediator.key: mediator for mediator in mediators}.values())
    folder = Path(config.output_dir) / config.model.name / dataset_key(config.dataset)
    folders = RunFolders(folder / noise_key(config.noise))
    keys = tuple(mediator.key for mediator in mediators)
    counts: dict[str, int] = {}
    require_writable(folders.run)
    if config.stage is not Stage.analyze:
        counts = _Stages(config, folders, mediators).run_all()
        if config.stage not in (Stage.all, Stage.analyze):
            return Outcome(folders.run, keys, None, counts)
    from ktrace.analysis.analyze import analyze  # pandas and seaborn, when they are needed

    analysis = analyze(
        folders.run,
        scheme=config.roles.scheme.value,
        limit=config.dataset.limit,
        metric=config.metric.value,
    )
    return Outcome(folders.run, keys, analysis, counts)


class _Stages:
    """The stages that need a model, over one config."""

    def __init__(
        self, config: RunConfig, folders: RunFolders, mediators: Sequence[Mediator]
    ) -> None:
        dataset = config.dataset
        self.config = config
        self.folders = folders
        self.mediators = mediators
        self.facts = load_facts(dataset.path, url=dataset.url, sha256=dataset.sha256)
        self.limit = len(self.facts) if dataset.limit is None else dataset.limit
        self.source = find_model(
            config.model.path, config.model.revision, allow_pickle=config.model.allow_pickle
        )
        self.clean_print = {
            "model": model_fingerprint(config.model, self.source.identity),
            "dataset": {
                "sha256": self.facts.digest,
                "n_facts": len(self.facts),
                "answer": dataset.answer.value,
            },
        }
        self.noise_print = self.clean_print | {"noise": noise_fingerprint(config.noise)}

    def run_all(self) -> dict[str, int]:
        """Run up to the config's stage; returns the counts of facts."""
        # Every store is compared with the settings before the first of them is written to.
        done = self.folders.clean.done(self.clean_print)
        corrupted_done = self.folders.corrupted.done(self.noise_print)
        restored_done = {m.key: self._restored(m).done(self._print(m)) for m in self.mediators}
        facts = list(enumerate(self.facts.facts))[: self.limit]
        self._clean([(index, fact) for index, fact in facts if index not in done])
        cases, left_out = self._cases()
        counts = {"facts": len(facts), "candidates": len(cases)}
        if not cases:
            reasons = "; ".join(f"{count} × {reason}" for reason, count in left_out.items())
            raise KtraceError(
                f"dataset.path={self.config.dataset.path}: none of its first {len(facts)} facts is "
                f"a candidate for model.name={self.config.model.name} ({reasons}); nothing to trace"
            )
        if self.config.stage in (Stage.filter, Stage.clean):
            for reason, count in left_out.items():
                counts[f"left out: {reason}"] = count
            return counts
        usable = self._corrupted(cases, corrupted_done)
        counts["traced"] = len(usable)
        if self.config.stage is not Stage.corrupted:
            self._restore(usable, restored_done)
        return counts

    def _print(self, mediator: Mediator) -> dict[str, Any]:
        return self.noise_print | {"mediator": mediator.key}

    def _restored(self, mediator: Mediator) -> Store:
        return self.folders.restored(mediator.key)

    def _model(self) -> "LanguageModel":
        lm = _MODELS.get(self.source, self.config.model)
        lm.paths.require(*(site for m in self.mediators for site in (m.site, m.severs) if site))
        return lm

    @cached_property
    def _encoded(self) -> list["_Encoded"]:
        tokenizer, whole = self._model().tokenizer, self.config.dataset.answer is Answer.full
        return [_encode(tokenizer, fact, whole) for fact in self.facts.facts]

    def _grouped(self, cases: Sequence["Case"]) -> list[list["Case"]]:
        """Cases by the groups of the whole dataset, so that each always meets the same company."""
        from ktrace.tracing.engine import Shape
        from ktrace.tracing.groups import group_facts

        shapes = [
            Shape(len(e.prompt.input_ids), e.span.start, len(e.answer_ids))
            if e.answer_ids
            else None
            for e in self._encoded
        ]
        by_index = {case.index: case for case in cases}
        groups = group_facts(shapes, self._engine.cases_together)
        kept = ([by_index[index] for index in group if index in by_index] for group in groups)
        return [group for group in kept if group]

    @cached_property
    def _noise(self) -> "MeasuredNoise":
        from ktrace.tracing.noise import NoiseChoice, Subject, make_noise

        lm, noise = self._model(), self.config.noise
        # Of the whole dataset, so that dataset.limit does not change a fact's numbers.
        subjects = []
        for fact, encoded in zip(self.facts.facts, self._encoded, strict=True):
            alone = subject_token_ids(lm.tokenizer, fact.subject)
            in_prompt = encoded.prompt.input_ids[encoded.span.start : encoded.span.stop]
            subjects.append(
                Subject(alone, in_prompt, fact.subject, fact.relation_id, fact.attribute)
            )
        choice = NoiseChoice(
            kind=noise.kind.value,
            replace=noise.replace,
            multiple=noise_multiple(noise),
            std=noise.std,
            samples=noise.samples,
            seed=noise.seed,
            degrees=noise.degrees,
        )
        return make_noise(choice, lm, subjects)

    @cached_property
    def _engine(self) -> "Engine":
        from ktrace.tracing.select import make_engine

        engine = self.config.engine
        return make_engine(
            engine.name.value, self._model(), self._noise.noise, row_budget=engine.row_budget
        )

    def _clean(self, todo: Sequence[tuple[int, Fact]]) -> None:
        if not todo:
            return
        lm = self._model()
        with (
            self.folders.clean.writer(self.clean_print) as writer,
            progress("clean runs", len(todo)) as advance,
        ):
            for index, fact in todo:
                writer.add(_clean_record(lm, index, fact, self._encoded[index]))
                advance(1)

    def _cases(self) -> tuple[list["Case"], dict[str, int]]:
        from ktrace.tracing.engine import Case

        cases, left_out = [], Counter[str]()
        names = ("is_candidate", "left_out", "input_ids", "span", "answer_ids")
        for record in self.folders.clean.read(*names):
            if record["index"] >= self.limit:
                continue
            if not record["is_candidate"]:
                left_out[record["left_out"]] += 1
                continue
            span = Span(*record["span"].tolist())
            ids, answer = (tuple(record[name].tolist()) for name in ("input_ids", "answer_ids"))
            cases.append(Case(record["index"], ids, span, answer))
        return cases, dict(left_out)

    def _corrupted(self, cases: Sequence["Case"], done: Container[int]) -> list["Case"]:
        """Run what is not stored; returns the cases that the noise can corrupt."""
        if not all(case.index in done for case in cases):
            self._run_corrupted(cases, done)
        baselines = {
            record["index"]: _baseline(record)
            for record in self.folders.corrupted.read(*_BASELINE)
            if not record["left_out"]
        }
        kept = [
            replace(case, baseline=baselines[case.index])
            for case in cases
            if case.index in baselines
        ]
        if not kept:
            raise KtraceError(
                f"noise.kind={self.config.noise.kind.value} can corrupt none of the {len(cases)} "
                "candidates; analysis/summary.json of another noise shows them"
            )
        return kept

    def _run_corrupted(self, cases: Sequence["Case"], done: Container[int]) -> None:
        measured, lm, engine = self._noise, self._model(), self._engine
        self._write_run_yaml()
        about = {"sigma": measured.sigma, "noise_level": measured.level}
        with (
            self.folders.corrupted.writer(self.noise_print) as writer,
            progress("corrupted runs", len(cases)) as advance,
        ):
            for case in cases:
                if case.index in measured.unusable and case.index not in done:
                    nothing = {metric: np.empty(0) for metric in METRICS}
                    unknown = {f"clean_{metric}": np.nan for metric in METRICS}
                    why = {"left_out": measured.unusable[case.index], "foil_ids": (), "foil": ""}
                    writer.add({**self._key(case), **about, **why, **nothing, **unknown})
                    advance(1)
            # A group is run as a whole even where some of it is stored: other company, other bits.
            for group in self._grouped([c for c in cases if c.index not in measured.unusable]):
                lacking = {case.index for case in group if case.index not in done}
                results = engine.baseline(group) if lacking else ()
                for case, baseline in results:
                    if case.index in lacking:
                        clean = {f"clean_{m}": value for m, value in baseline.clean.items()}
                        foil = {
                            "left_out": "",
                            "foil_ids": baseline.foil_ids,
                            "foil": _decoded(lm, baseline.foil_ids),
                        }
                        writer.add(
                            {**self._key(case), **about, **foil, **clean, **baseline.corrupted}
                        )
                advance(len(group))

    def _restore(self, cases: Sequence["Case"], done: Mapping[str, Container[int]]) -> None:
        if all(case.index in have for case in cases for have in done.values()):
            return
        engine = self._engine
        self._write_run_yaml()
        with ExitStack() as stack:
            writers = {
                m.key: stack.enter_context(self._restored(m).writer(self._print(m)))
                for m in self.mediators
            }
            title = f"restoring {', '.join(writers)}"
            advance = stack.enter_context(progress(title, len(cases)))
            for group in self._grouped(cases):
                lacking = {
                    key: {case.index for case in group if case.index not in have}
                    for key, have in done.items()
                }
                mediators = [m for m in self.mediators if lacking[m.key]]
                results = engine.restored(group, mediators) if mediators else ()
                for case, restored in results:
                    for key, scores in restored.items():
                        if case.index in lacking[key]:
                            writers[key].add({**self._key(case), **scores})
                advance(len(group))

    def _key(self, case: "Case") -> dict[str, int]:
        return {"index": case.index, "known_id": self.facts.facts[case.index].known_id}

    def _write_run_yaml(self) -> None:
        content = {
            "config": _plain(asdict(self.config)),
            "model": asdict(self.source),
            "noise": {"sigma": self._noise.sigma, "level": self._noise.level},
            "versions": {package: version(package) for package in _PACKAGES},
            "fingerprint": self.noise_print,
        }
        write_text(self.folders.run_yaml, yaml.safe_dump(content, sort_keys=False))


@dataclass(frozen=True)
class _Encoded:
    prompt: EncodedPrompt
    span: Span
    answer_ids: tuple[int, ...]


def _encode(tokenizer: Any, fact: Fact, whole_answer: bool) -> _Encoded:
    prompt = encode_prompt(tokenizer, fact.prompt)
    begin = fact.subject_start
    span = token_span(prompt.offsets, begin, begin + len(fact.subject))
    answer = answer_token_ids(tokenizer, fact.prompt, fact.attribute)
    return _Encoded(prompt, span, answer if whole_answer else answer[:1])


# What `_baseline` needs of a corrupted run.
_BASELINE = ("left_out", "foil_ids", *METRICS, *(f"clean_{metric}" for metric in METRICS))


def _baseline(record: Mapping[str, Any]) -> "Baseline":
    from ktrace.tracing.engine import Baseline

    return Baseline(
        clean={metric: record[f"clean_{metric}"] for metric in METRICS},
        corrupted={metric: record[metric] for metric in METRICS},
        foil_ids=tuple(record["foil_ids"].tolist()),
    )


def _clean_record(lm: "LanguageModel", index: int, fact: Fact, encoded: _Encoded) -> dict[str, Any]:
    import torch

    from ktrace.tracing.clean import SITES, clean_run

    prompt, span, answer = encoded.prompt, encoded.span, encoded.answer_ids
    result = clean_run(lm, prompt.input_ids, answer)
    if not answer:
        left_out = "the answer merges with the prompt's last token"
    elif answer != result.predicted_ids:
        left_out = "another answer is predicted"
    else:
        left_out = ""
    roles = role_of_positions(span, len(prompt.input_ids))
    record: dict[str, Any] = {
        **asdict(fact),
        "index": index,
        "left_out": left_out,
        "is_candidate": not left_out,
        "input_ids": prompt.input_ids,
        "tokens": prompt.tokens,
        "offsets": prompt.offsets,
        "roles": [role or "" for role in roles],
        "span": span,
        "answer_ids": answer,
        "predicted_ids": result.predicted_ids,
        "predicted": _decoded(lm, result.predicted_ids),
        "predicted_probability": result.predicted_probability,
        "probability": result.probability,
    }
    for site in SITES:
        states = result.activations.get(site, torch.empty(0, 0, 0))  # not every family has all
        if left_out:
            states = states[:0, :0, :0]
        # numpy has no bfloat16: its bits travel as uint16.
        record[site] = np.ascontiguousarray(
            (states.view(torch.uint16) if states.dtype == torch.bfloat16 else states).numpy()
        )
    return record


def _decoded(lm: "LanguageModel", tokens: Sequence[int]) -> str:
    text: str = lm.tokenizer.decode(tokens)
    return text.replace("\0", "␀")  # HDF5 ends a text at NUL


class _ModelCache:
    """Keeps the model used last: the jobs of a sweep run in one process."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._model: LanguageModel | None = None

    def get(self, source: ModelSource, config: ModelConfig) -> "LanguageModel":
        from ktrace.lm.load import load_language_model

        key = repr((source, replace(config, name="", window=0)))  # those two do not change it
        if self._model is None or key != self._key:
            self._model = None  # before the next one is loaded: both may not fit
            self._model = load_language_model(
                source,
                dtype=config.dtype.value,
                device=config.device,
                device_map=config.device_map,
                quantization=config.quantization.value if config.quantization else None,
                trust_remote_code=config.trust_remote_code,
                allow_pickle=config.allow_pickle,
                paths=ModulePaths(**asdict(config.modules)) if config.modules else None,
            )
            self._key = key
        return self._model


_MODELS = _ModelCache()


def _plain(value: Any) -> Any:
    """Enums by name, for YAML."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
