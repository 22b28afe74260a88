"""The stages that need a model: clean, corrupted and restored runs of every fact not yet stored.

torch is imported only where something is left to run.
"""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ktrace.config import Answer, Dtype, EngineName, ModelConfig, RunConfig, Stage
from ktrace.config.identity import Fingerprint, fingerprints, resolved_dtype
from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span
from ktrace.facts.dataset import facts_of, noise_facts_of
from ktrace.lm.source import ModelSource, find_model, own_dtype
from ktrace.pipeline.console import progress
from ktrace.pipeline.records import clean_record
from ktrace.pipeline.runlog import RunLog, about_dataset, about_model, about_noise
from ktrace.pipeline.shards import Shard, own_facts
from ktrace.pipeline.signals import heeding_signals
from ktrace.store import (
    BASELINE_SCORES,
    CLEAN_SCORES,
    RunFolders,
    Store,
    batch_of,
    claim_all,
    work_through,
)
from ktrace.store.layout import is_complete
from ktrace.terms import METRICS
from ktrace.tracing.groups import fact_cost
from ktrace.tracing.mediators import Mediator

if TYPE_CHECKING:
    from ktrace.lm.model import LanguageModel
    from ktrace.tracing.encode import EncodedFact
    from ktrace.tracing.engine import Baseline, Case, Engine, Shape
    from ktrace.tracing.measure import MeasuredNoise


class Stages:
    """The stages of one run, up to restoration.

    Attributes:
        shard: which of the facts are this run's.
        limit: facts from the dataset's first on, over all shards.
    """

    def __init__(
        self,
        config: RunConfig,
        folders: RunFolders,
        mediators: Sequence[Mediator],
        run_log: RunLog,
    ) -> None:
        dataset = config.dataset
        self.config = config
        self.folders = folders
        self.mediators = mediators
        self.log = run_log
        self.facts = facts_of(dataset)
        self.noise_facts = noise_facts_of(dataset)
        self.limit = min(len(self.facts), dataset.limit or len(self.facts))
        self.shard = Shard.parse(config.shard)
        self.source = find_model(
            config.model.path, config.model.revision, allow_pickle=config.model.allow_pickle
        )
        own = own_dtype(self.source) if config.model.dtype is Dtype.auto else None
        self.model = replace(config.model, dtype=resolved_dtype(config.model, own))
        self.prints = fingerprints(
            replace(config, model=self.model),
            self.source.identity,
            self.facts.content,
            self.noise_facts.content if self.noise_facts is not None else None,
        )

    def run_all(self) -> dict[str, int]:
        """Run up to the config's stage; returns the counts of facts."""
        # Every store is compared with the settings before the first of them is written to.
        own = self._own
        done = self.folders.clean.done(self.prints.clean, own)
        corrupted_done = self.folders.corrupted.done(self.prints.corrupted, own)
        restored_done = {m.key: self._restored(m).done(self._print(m), own) for m in self.mediators}
        facts = [pair for pair in enumerate(self.facts.facts) if pair[0] in own]
        self._clean([(index, fact) for index, fact in facts if index not in done])
        cases, left_out = self._cases()
        counts = {"facts": len(facts), "candidates": len(cases)}
        if not cases and not self.shard.is_part:
            reasons = "; ".join(f"{count} × {reason}" for reason, count in left_out.items())
            raise KtraceError(
                f"{self.facts.origin}: none of its first {len(facts)} facts is "
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

    def _print(self, mediator: Mediator) -> Fingerprint:
        return self.prints.restored(mediator.key)

    def _restored(self, mediator: Mediator) -> Store:
        return self.folders.restored(mediator.key)

    @cached_property
    def _lm(self) -> "LanguageModel":
        lm = _MODELS.get(self.source, self.model)
        lm.paths.require(*(site for m in self.mediators for site in m.sites))
        self.log.add(
            **about_model(self.model, self.source, lm),
            dataset={**about_dataset(self.config.dataset), **self.prints.dataset},
            seeds={"noise": self.config.noise.seed},
            fingerprint=self.prints.corrupted,
        )
        self.log.save()
        return lm

    @cached_property
    def _encoded(self) -> list["EncodedFact"]:
        from ktrace.tracing.encode import encode_fact

        whole = self.config.dataset.answer is Answer.full
        return [encode_fact(self._lm, fact, whole_answer=whole) for fact in self.facts.facts]

    @cached_property
    def _shapes(self) -> list["Shape | None"]:
        from ktrace.tracing.engine import Shape

        return [
            Shape(len(e.prompt.input_ids), e.span.start, len(e.answer_ids))
            if e.answer_ids
            else None
            for e in self._encoded
        ]

    @cached_property
    def _groups(self) -> list[list[int]]:
        """Facts of the whole dataset, so that each always meets the same company."""
        from ktrace.tracing.groups import group_facts

        return group_facts(self._shapes, self._engine.cases_together)

    def _grouped(self, cases: Sequence["Case"]) -> list[list["Case"]]:
        by_index = {case.index: case for case in cases}
        kept = ([by_index[index] for index in group if index in by_index] for group in self._groups)
        return [group for group in kept if group]

    @cached_property
    def _own(self) -> Container[int]:
        """Indices of the facts that this run works on."""
        everything = range(self.limit)
        keys = [mediator.key for mediator in self.mediators]
        if not self.shard.is_part or is_complete(self.folders, keys, self.limit):
            return everything  # and no model is needed to tell
        from ktrace.tracing.groups import unit_facts

        # Other settings are refused before a model is loaded for the split.
        self.folders.clean.require(self.prints.clean)
        self.folders.corrupted.require(self.prints.corrupted)
        costs = [fact_cost(len(e.prompt.input_ids), e.span.start) for e in self._encoded]
        # Not by groups: another shard may run on another device, and group otherwise.
        return own_facts(self.shard, unit_facts(self._shapes), costs[: self.limit])

    @cached_property
    def _noise(self) -> "MeasuredNoise":
        from ktrace.tracing.measure import measured_noise

        measured = measured_noise(
            self._lm,
            self.config.noise,
            self.facts,
            self._encoded,
            self.noise_facts,
            whole_answer=self.config.dataset.answer is Answer.full,
        )
        dataset = self.config.dataset
        measured_on = {
            "dataset": Path(dataset.noise_facts).stem if dataset.noise_facts else dataset.name,
            "facts": measured.n_facts,
            "tokens": measured.n_tokens,
        }
        self.log.add(noise=about_noise(measured.sigma, measured.level, measured_on))
        return measured

    @cached_property
    def _engine(self) -> "Engine":
        from ktrace.tracing.engines import make_engine
        from ktrace.tracing.reference import ReferenceEngine

        asked = self.config.engine
        engine = make_engine(asked, self._lm, self._noise.noise)
        used = EngineName.reference if isinstance(engine, ReferenceEngine) else EngineName.suffix
        self.log.add(engine={"asked": asked.name, "used": used})
        self.log.save()
        return engine

    def _clean(self, todo: Sequence[tuple[int, Fact]]) -> None:
        if not todo:
            return
        lm = self._lm
        with (
            self.log.timed("clean"),
            self.folders.clean.writer(self.prints.clean, self.log.on_parts()) as writer,
            progress("clean runs", len(todo)) as advance,
        ):

            def attempt(unit: tuple[int, Fact]) -> bool:
                index, fact = unit
                lacking = writer.claim([index])
                if lacking:
                    writer.add(clean_record(lm, index, fact, self._encoded[index]))
                advance(lacking is not None)
                return lacking is not None

            work_through(todo, heeding_signals(attempt), writer.flush)

    def _cases(self) -> tuple[list["Case"], dict[str, int]]:
        from ktrace.tracing.engine import Case

        cases, left_out = [], Counter[str]()
        names = ("is_candidate", "left_out", "input_ids", "span", "answer_ids")
        for record in self.folders.clean.read(*names):
            if record["index"] not in self._own:
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
        if not kept and not self.shard.is_part:
            raise KtraceError(
                f"noise.kind={self.config.noise.kind.value} can corrupt none of the {len(cases)} "
                "candidates; analysis/summary.json of another noise shows them"
            )
        return kept

    def _run_corrupted(self, cases: Sequence["Case"], done: Container[int]) -> None:
        from ktrace.tracing.encode import decoded, require_numbers

        measured, lm, engine = self._noise, self._lm, self._engine
        about = {"sigma": measured.sigma, "noise_level": measured.level}
        unusable = [[case] for case in cases if case.index in measured.unusable]
        usable = self._grouped([case for case in cases if case.index not in measured.unusable])
        with (
            self.log.timed("corrupted"),
            self.folders.corrupted.writer(self.prints.corrupted, self.log.on_parts()) as writer,
            progress("corrupted runs", len(cases)) as advance,
        ):

            def attempt(group: Sequence["Case"]) -> bool:
                lacking = writer.claim([case.index for case in group])
                if lacking is None:
                    return False
                if lacking and (reason := measured.unusable.get(group[0].index)):
                    nothing = dict.fromkeys(BASELINE_SCORES, np.empty(0))
                    why = {"left_out": reason, "foil_ids": np.empty((0, 0), np.int64), "foil": ()}
                    writer.add({**self._key(group[0]), **about, **why, **nothing})
                    lacking = frozenset()
                # As a whole even where some of it is stored: other company, other bits.
                results = engine.baseline(group) if lacking else ()
                for case, baseline in results:
                    if case.index in lacking:
                        fact = self.facts.facts[case.index]
                        require_numbers(lm, fact, "corrupted run", baseline.corrupted[METRICS[0]])
                        clean = {CLEAN_SCORES[m]: value for m, value in baseline.clean.items()}
                        foil = {
                            "left_out": "",
                            "foil_ids": baseline.foil_ids,
                            "foil": [decoded(lm, ids) for ids in baseline.foil_ids],
                        }
                        writer.add(
                            {**self._key(case), **about, **foil, **clean, **baseline.corrupted}
                        )
                advance(len(group))
                return True

            work_through([*unusable, *usable], heeding_signals(attempt), writer.flush)

    def _restore(self, cases: Sequence["Case"], done: Mapping[str, Container[int]]) -> None:
        if all(case.index in have for case in cases for have in done.values()):
            return
        engine, origin = self._engine, self.log.on_parts()
        with ExitStack() as stack:
            stack.enter_context(self.log.timed("restore"))
            writers = {
                m.key: stack.enter_context(
                    self._restored(m).writer(self._print(m), origin, ["together"])
                )
                for m in self.mediators
            }
            title = f"restoring {', '.join(writers)}"
            advance = stack.enter_context(progress(title, len(cases)))

            def attempt(group: Sequence["Case"]) -> bool:
                lacking = claim_all(writers, [case.index for case in group])
                if lacking is None:
                    return False
                batch = batch_of(writers, lacking)
                mediators = [m for m in self.mediators if m.key in batch]
                together = {"together": " ".join(m.key for m in mediators)}
                results = engine.restored(group, mediators) if mediators else ()
                for case, restored in results:
                    for key, scores in restored.items():
                        if case.index in lacking[key]:
                            writers[key].add({**self._key(case), **together, **scores})
                advance(len(group))
                return True

            def let_go() -> None:
                for writer in writers.values():
                    writer.flush()

            work_through(self._grouped(cases), heeding_signals(attempt), let_go)

    def _key(self, case: "Case") -> dict[str, int]:
        return {"index": case.index, "known_id": self.facts.facts[case.index].known_id}


# What `_baseline` needs of the store.
_BASELINE = ("left_out", "foil_ids", *BASELINE_SCORES)


def _baseline(record: Mapping[str, Any]) -> "Baseline":
    from ktrace.tracing.engine import Baseline

    return Baseline(
        clean={metric: record[name] for metric, name in CLEAN_SCORES.items()},
        corrupted={metric: record[metric] for metric in METRICS},
        foil_ids=tuple(map(tuple, record["foil_ids"].tolist())),
    )


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
            self._model = load_language_model(source, config)
            self._key = key
        return self._model


_MODELS = _ModelCache()
