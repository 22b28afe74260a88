"""One run from its config: which stages it takes, and the analysis of what they stored."""

import errno
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktrace.config import RunConfig, Stage
from ktrace.config.identity import dataset_key, noise_key
from ktrace.errors import KtraceError
from ktrace.files import read_regular, remove_stale, require_writable
from ktrace.pipeline.bars import steps
from ktrace.pipeline.check import Checked, check_facts
from ktrace.pipeline.logger import require_logger
from ktrace.pipeline.runlog import RunLog
from ktrace.pipeline.same_settings import require_same_settings
from ktrace.pipeline.shown_facts import require_shown
from ktrace.pipeline.stages import run_stages
from ktrace.pipeline.upkeep import Upkeep, compact_run, status_of
from ktrace.pipeline.verify import verify
from ktrace.store import RunFolders, one_at_a_time
from ktrace.tracing.mediators import Mediator, make_mediators

if TYPE_CHECKING:
    from ktrace.analysis.analyze import Analysis
    from ktrace.analysis.compare import Comparison
    from ktrace.analysis.rows import Averaging

log = logging.getLogger(__name__)

_ELSEWHERE = "analysis.folder"
_OF_STORES = (Stage.analyze, Stage.compare)
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        folder: `<output_dir>/<model>/<dataset>/<noise>`; of a comparison, where its files are; of a
            check, which has none, this one.
        mediator_keys: what the config asked for.
        analysis: None where the run stopped before it.
        counts: facts by state, as far as the run got.
        comparison: of stage=compare only.
        candidates: where `candidates.csv` lies, of a run that stopped before the analysis.
        upkeep: of stage=compact, stage=status and stage=verify only.
        checked: of stage=check only.
    """

    folder: Path
    mediator_keys: tuple[str, ...]
    analysis: "Analysis | None"
    counts: Mapping[str, int]
    comparison: "Comparison | None" = None
    candidates: Path | None = None
    upkeep: Upkeep | None = None
    checked: Checked | None = None


def run(config: RunConfig) -> Outcome:
    """Run the stages up to `config.stage`, doing only what is not yet stored.

    Raises:
        KtraceError: something the user can mend.
    """
    require_logger(config)
    if config.stage is Stage.compare:
        runs = [config.runs] if isinstance(config.runs, str) else config.runs
        with _naming_elsewhere(config):
            return compare_runs(config, runs)
    if config.stage is Stage.check:
        return Outcome(Path(), (), None, {}, checked=check_facts(config))
    mediators = make_mediators(config.mediator)
    folders = _folders(config)
    keys = tuple(mediator.key for mediator in mediators)
    if config.stage is Stage.status:
        return Outcome(folders.run, keys, None, {}, upkeep=status_of(config, folders, keys))
    if config.stage is Stage.compact:
        return Outcome(folders.run, keys, None, {}, upkeep=compact_run(folders))
    if config.stage is Stage.verify:
        return Outcome(folders.run, keys, None, {}, upkeep=verify(config, folders))
    with _naming_elsewhere(config):
        _require_writable(config, folders)
        return _run(config, folders, mediators)


def _run(config: RunConfig, folders: RunFolders, mediators: Sequence[Mediator]) -> Outcome:
    keys = tuple(mediator.key for mediator in mediators)
    counts: dict[str, int] = {}
    with RunLog(config, folders) as run_log:
        remove_stale(folders.elsewhere or folders.run.parent)
        if config.stage is Stage.analyze:
            require_same_settings(config, folders)
            require_shown(config, folders)
        else:
            counts, is_whole = run_stages(config, folders, mediators, run_log)
            if not is_whole:
                log.info("shard=%s is done; the last shard to end draws the figures", config.shard)
            if not is_whole or config.stage is not Stage.all:
                candidates = _candidates(folders, config.dataset.limit)
                return Outcome(folders.run, keys, None, counts, candidates=candidates)
        with run_log.timed("analyze"):
            return Outcome(folders.run, keys, _analyze(config, folders, keys), counts)


def _folders(config: RunConfig) -> RunFolders:
    dataset = Path(config.output_dir) / config.model.name / dataset_key(config.dataset)
    elsewhere = Path(config.analysis.folder) if config.analysis.folder else None
    return RunFolders(dataset / noise_key(config.noise), config.claims, elsewhere)


def analysis_folder(config: RunConfig) -> Path:
    """Where the tables and figures of a run or a comparison go."""
    if config.stage is Stage.compare:
        return _comparison_folder(config)
    return _folders(config).analysis


def _comparison_folder(config: RunConfig) -> Path:
    return Path(config.analysis.folder or Path(config.output_dir) / "comparison")


def _require_writable(config: RunConfig, folders: RunFolders) -> None:
    if folders.elsewhere is not None:
        require_writable(folders.elsewhere, _ELSEWHERE)
    if folders.elsewhere is None or config.stage is not Stage.analyze:
        require_writable(folders.run)


@contextmanager
def _naming_elsewhere(config: RunConfig) -> Iterator[None]:
    """Say what to do where an analysis cannot be written beside the stores."""
    try:
        yield
    except KtraceError as error:
        cause = error.__cause__
        is_refused = isinstance(cause, OSError) and cause.errno in _READ_ONLY
        if not is_refused or config.analysis.folder or config.stage not in _OF_STORES:
            raise
        raise KtraceError(f"{error}; {_ELSEWHERE}=... puts the analysis elsewhere") from cause


def _candidates(folders: RunFolders, limit: int | None) -> Path:
    from ktrace.analysis.candidates import write_candidates  # pandas, when it is needed

    return write_candidates(folders, limit)


def _analyze(config: RunConfig, folders: RunFolders, keys: Sequence[str]) -> "Analysis":
    from ktrace.analysis.analyze import analyze  # pandas and seaborn, when they are needed

    # From the first look at the stores to the last file: the jobs of a sweep share the folder, and
    # who looked first must not be the last to write.
    with _alone(folders), steps("") as tell:
        before = _facts_analysed(folders)
        analysis = analyze(
            folders,
            averaging=_averaging(config),
            asked=keys,
            limit=config.dataset.limit,
            metric=config.metric.value,
            partial=config.analysis.partial,
            facts=config.analysis.facts,
            relations=config.analysis.relations.value,
            palette=config.analysis.palette.value,
            tell=tell,
        )
        if before > (now := analysis.summary["n_facts"]):
            log.warning("this analysis of %d facts replaces one of %d", now, before)
        return analysis


def _facts_analysed(folders: RunFolders) -> int:
    """Facts of the analysis that is there; 0 where none is, or none that can be read."""
    try:
        found = json.loads(read_regular(folders.analysis / "summary.json"))["n_facts"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return found if isinstance(found, int) else 0


def _alone(folders: RunFolders) -> AbstractContextManager[None]:
    if not folders.run.is_dir():  # nothing to analyse, which is an error that leaves no folder
        return nullcontext()
    where = folders.elsewhere or folders.run
    return one_at_a_time(where, "analyses the same run", folders.claims)


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
    """Set stored runs side by side, in `analysis.folder` or `<output_dir>/comparison`.

    Args:
        config: how they are averaged and shown.
        runs: patterns of their folders.

    Raises:
        KtraceError: see `ktrace.analysis.compare.compare`.
    """
    from ktrace.analysis.compare import compare

    folder = _comparison_folder(config)
    require_writable(folder, _ELSEWHERE if config.analysis.folder else "output_dir")
    remove_stale(folder)
    with steps("") as tell:
        comparison = compare(
            runs,
            folder,
            averaging=_averaging(config),
            metric=config.metric.value,
            limit=config.dataset.limit,
            partial=config.analysis.partial,
            palette=config.analysis.palette.value,
            tell=tell,
        )
    return Outcome(folder, (), None, {}, comparison)
