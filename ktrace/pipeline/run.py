"""One run from its config: which stages it takes, and the analysis of what they stored."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktrace.config import RunConfig, Stage
from ktrace.config.identity import dataset_key, noise_key
from ktrace.files import remove_stale, require_writable
from ktrace.pipeline.runlog import RunLog
from ktrace.pipeline.same_settings import require_same_settings
from ktrace.pipeline.stages import run_stages
from ktrace.pipeline.upkeep import Upkeep, compact_run, status_of
from ktrace.pipeline.verify import verify
from ktrace.store import RunFolders, one_at_a_time
from ktrace.tracing.mediators import make_mediators

if TYPE_CHECKING:
    from ktrace.analysis.analyze import Analysis
    from ktrace.analysis.compare import Comparison
    from ktrace.analysis.rows import Averaging

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        folder: `<output_dir>/<model>/<dataset>/<noise>`; of a comparison, where its files are.
        mediator_keys: what the config asked for.
        analysis: None where the run stopped before it.
        counts: facts by state, as far as the run got.
        comparison: of stage=compare only.
        candidates: where `candidates.csv` lies, of a run that stopped before the analysis.
        upkeep: of stage=compact, stage=status and stage=verify only.
    """

    folder: Path
    mediator_keys: tuple[str, ...]
    analysis: "Analysis | None"
    counts: Mapping[str, int]
    comparison: "Comparison | None" = None
    candidates: Path | None = None
    upkeep: Upkeep | None = None


def run(config: RunConfig) -> Outcome:
    """Run the stages up to `config.stage`, doing only what is not yet stored.

    Raises:
        KtraceError: something the user can mend.
    """
    if config.stage is Stage.compare:
        runs = [config.runs] if isinstance(config.runs, str) else config.runs
        return compare_runs(config, runs)
    mediators = make_mediators(config.mediator)
    dataset = Path(config.output_dir) / config.model.name / dataset_key(config.dataset)
    folders = RunFolders(dataset / noise_key(config.noise), config.claims)
    keys = tuple(mediator.key for mediator in mediators)
    counts: dict[str, int] = {}
    if config.stage is Stage.status:
        return Outcome(folders.run, keys, None, {}, upkeep=status_of(config, folders, keys))
    if config.stage is Stage.compact:
        return Outcome(folders.run, keys, None, {}, upkeep=compact_run(folders))
    if config.stage is Stage.verify:
        return Outcome(folders.run, keys, None, {}, upkeep=verify(config, folders))
    require_writable(folders.run)
    with RunLog(config, folders) as run_log:
        remove_stale(dataset)
        if config.stage is Stage.analyze:
            require_same_settings(config, folders)
        else:
            counts, is_whole = run_stages(config, folders, mediators, run_log)
            if not is_whole:
                log.info("shard=%s is done; the last shard to end draws the figures", config.shard)
            if not is_whole or config.stage is not Stage.all:
                candidates = _candidates(folders, config.dataset.limit)
                return Outcome(folders.run, keys, None, counts, candidates=candidates)
        with run_log.timed("analyze"):
            return Outcome(folders.run, keys, _analyze(config, folders, keys), counts)


def _candidates(folders: RunFolders, limit: int | None) -> Path:
    from ktrace.analysis.candidates import write_candidates  # pandas, when it is needed

    return write_candidates(folders, limit)


def _analyze(config: RunConfig, folders: RunFolders, keys: Sequence[str]) -> "Analysis":
    from ktrace.analysis.analyze import analyze  # pandas and seaborn, when they are needed

    # From the first look at the stores to the last file: the jobs of a sweep share the folder, and
    # who looked first must not be the last to write.
    with _alone(folders):
        return analyze(
            folders.run,
            averaging=_averaging(config),
            asked=keys,
            limit=config.dataset.limit,
            metric=config.metric.value,
            partial=config.analysis.partial,
            facts=config.analysis.facts,
            relations=config.analysis.relations.value,
            palette=config.analysis.palette.value,
        )


def _alone(folders: RunFolders) -> AbstractContextManager[None]:
    if not folders.run.is_dir():  # nothing to analyse, which is an error that leaves no folder
        return nullcontext()
    return one_at_a_time(folders.run, "analyses the same run", folders.claims)


def _averaging(config: RunConfig) -> "Averaging":
    from ktrace.analysis.rows import Averaging

    roles, analysis = config.roles, config.analysis
    return Averaging(
        scheme=roles.scheme.value,
        single_token=roles.single_token.value,
        pool=analysis.pool.value,
        cluster=analysis.cluster,
        interval=analysis.interval.value,
        smallest=analysis.smallest,
        share=analysis.share,
        contrasts=tuple(dict.fromkeys(analysis.contrasts)),
    )


def compare_runs(config: RunConfig, runs: Sequence[str]) -> Outcome:
    """Set stored runs side by side, in `<output_dir>/comparison`.

    Args:
        config: how they are averaged and shown.
        runs: patterns of their folders.

    Raises:
        KtraceError: see `ktrace.analysis.compare.compare`.
    """
    from ktrace.analysis.compare import compare

    folder = Path(config.output_dir) / "comparison"
    require_writable(folder)
    remove_stale(folder)
    comparison = compare(
        runs,
        folder,
        averaging=_averaging(config),
        metric=config.metric.value,
        limit=config.dataset.limit,
        partial=config.analysis.partial,
        palette=config.analysis.palette.value,
    )
    return Outcome(folder, (), None, {}, comparison)
