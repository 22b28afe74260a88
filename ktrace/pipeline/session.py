"""One loaded model, with a dataset in its tokens, its noise and its engine.

Torch is imported openly here: a run that finds everything stored never gets here.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from ktrace.config import EngineName, ModelConfig, Prove, require_layers
from ktrace.lm.load import load_language_model
from ktrace.lm.model import LanguageModel
from ktrace.lm.source import ModelSource
from ktrace.pipeline.assignment import Assignment
from ktrace.pipeline.bars import steps, waiting
from ktrace.pipeline.origin import (
    about_dataset,
    about_device,
    about_model,
    about_noise,
    about_proof,
)
from ktrace.pipeline.runlog import RunLog
from ktrace.pipeline.workers import require_workers, workers_for
from ktrace.tracing.checks import require_mediators, require_places, say_wide_windows
from ktrace.tracing.encode import about_answers
from ktrace.tracing.engine import Case, Engine, Use
from ktrace.tracing.engines import assumption, make_engine
from ktrace.tracing.groups import fact_cost, group_facts
from ktrace.tracing.measure import MeasuredNoise, measured_noise
from ktrace.tracing.pairs import encoded_for
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.judge import state_of
from ktrace.tracing.suffix.verdicts import VerdictFiles

# In a model's folder: no dataset can be called so.
VERDICTS = ".proofs"


class Session:
    """A model that is loaded, and the whole dataset in its tokens.

    Attributes:
        assignment: what the run works on.
        lm: the model.
        encoded: every fact of the dataset, so that `dataset.limit` changes no fact's company.
        log: the run's record, which learns what the model and the engine are.
        workers: who computes its facts.
    """

    def __init__(self, assignment: Assignment, run_log: RunLog) -> None:
        config = assignment.config
        self.assignment = assignment
        self.log = run_log
        self.lm = _loaded(assignment.source, config.model)
        self._as_loaded = _loaded.state
        require_mediators(self.lm, assignment.mediators)
        say_wide_windows(self.lm, assignment.mediators)
        require_layers(config.activations.layers, self.lm.n_layers)
        require_workers(config.engine.workers, self.lm)
        run_log.add(
            **about_model(config.model, assignment.source, self.lm),
            dataset={**about_dataset(config.dataset), **assignment.prints.dataset},
            seeds={"noise": config.noise.seed},
            fingerprint=assignment.prints.corrupted,
        )
        run_log.save()
        facts = assignment.facts.facts
        with waiting(f"cutting {len(facts)} prompts into tokens"):
            self.encoded = encoded_for(config.noise.kind, self.lm, facts, config.dataset)
        run_log.add(answers=about_answers(self.encoded))
        lengths = [len(one.prompt.input_ids) for one in self.encoded]
        n_tokens = (1 + config.noise.samples) * max(lengths, default=0)
        self.workers = workers_for(config.engine.workers, self.lm, assignment.limit, n_tokens)
        run_log.add(device=about_device(self.lm.device, self.workers.about))
        traceable = [(one.span, len(one.prompt.input_ids)) for one in self.encoded if one.shape]
        require_places(traceable, assignment.mediators)

    def corrupted(self, cases: Sequence[Case]) -> list[Case]:
        """Stored cases, with what their corrupted runs read."""
        return [self.encoded[case.index].corrupted(case) for case in cases]

    @cached_property
    def tracer(self) -> "Tracer":
        """Engine and groups: made when first needed, as clean runs need none of them."""
        config = self.assignment.config
        shapes = [fact.shape for fact in self.encoded]
        noise = self.noise.noise
        with self.workers.as_threaded(), steps("cells") as tell:
            traced = [shape for shape in shapes if shape is not None]
            told = partial(tell, "proving engine=suffix")
            use = Use(self.assignment.mediators, traced, told)
            engine = make_engine(config.engine, self.lm, noise, use, files=self._verdict_files())
        used = EngineName.reference if isinstance(engine, ReferenceEngine) else EngineName.suffix
        prove = config.engine.prove
        about: dict[str, object] = {"asked": config.engine.name, "used": used, "prove": prove}
        if isinstance(engine, SuffixEngine) and prove is Prove.never:
            about["assumed"] = assumption(self.lm, packed=engine.packed)
        self.log.add(engine=about)
        self.log.save()
        groups = group_facts(shapes, engine.cases_together)
        return Tracer(engine, groups)

    def _verdict_files(self) -> VerdictFiles | None:
        """What other runs proved of this model; none where its code may come from anywhere."""
        config = self.assignment.config
        if config.model.trust_remote_code:
            return None
        about = about_proof(config.model, self.assignment.prints.model, self.lm)
        return VerdictFiles(
            Path(config.output_dir) / config.model.name / VERDICTS, about, self._as_loaded
        )

    @cached_property
    def noise(self) -> MeasuredNoise:
        """Measured on the whole dataset, when first needed."""
        assignment, dataset = self.assignment, self.assignment.config.dataset
        with self.workers.as_threaded(), waiting("measuring the noise"):
            measured = measured_noise(
                self.lm,
                assignment.config.noise,
                assignment.facts,
                self.encoded,
                dataset,
                assignment.noise_facts,
            )
        measured_on = {
            "dataset": Path(dataset.noise_facts).stem if dataset.noise_facts else dataset.name,
            "facts": measured.n_facts,
            "tokens": measured.n_tokens,
        }
        self.log.add(noise=about_noise(measured.sigma, measured.level, measured_on))
        return measured


@dataclass(frozen=True)
class Tracer:
    """What corrupted and restored runs need beside a model.

    Attributes:
        engine: the one asked for, where it is proven on this model.
        groups: indices of facts that share batches, of the whole dataset: each fact always meets
            the same company.
    """

    engine: Engine
    groups: Sequence[Sequence[int]]

    def grouped(self, cases: Sequence[Case]) -> list[list[Case]]:
        """Some of the facts, in their groups: most work first, so that workers end together."""
        by_index = {case.index: case for case in cases}
        kept = ([by_index[index] for index in group if index in by_index] for group in self.groups)
        return sorted((group for group in kept if group), key=_cost, reverse=True)


def _cost(group: Sequence[Case]) -> int:
    return sum(fact_cost(len(case.input_ids), case.span.start) for case in group)


class _LastModel:
    """Keeps the model used last: the jobs of a sweep run in one process."""

    def __init__(self) -> None:
        self._key: tuple[ModelSource, str] | None = None
        self._lm: LanguageModel | None = None
        self.state: Hashable = None  # of the model when it was loaded

    def __call__(self, source: ModelSource, config: ModelConfig) -> LanguageModel:
        key = (source, repr(replace(config, name="", window=0)))  # those two do not change it
        if self._lm is None or key != self._key:
            self._lm = None  # before the next one is loaded: both may not fit
            with steps("weights") as tell:
                told = partial(tell, f"loading {config.name}")
                self._lm = load_language_model(source, config, told)
            self.state = state_of(self._lm)
            self._key = key
        return self._lm


_loaded = _LastModel()
