"""A stored run by its folder: what it holds and what its analysis found, without torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ktrace.analysis.activations import Activations, load_activations
from ktrace.analysis.average import POOLS, average
from ktrace.analysis.candidates import candidate_table
from ktrace.analysis.effects import load_effects
from ktrace.analysis.notebook import image, table
from ktrace.analysis.run_folder import FolderPath, run_folders
from ktrace.errors import KtraceError
from ktrace.files import read_regular
from ktrace.store import CleanRecord, CorruptedRecord
from ktrace.terms import CLUSTERS, METRICS

_MOST_JSON = 2**26  # bytes: a summary has a line for each mediator, role and run
_FIRST_FIGURE = "aie"


class Run:
    """A stored run.

    What takes a run's folder takes a run, too.

    >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
    >>> run
    <Run outputs/tiny/facts/gaussian-x3-n10-seed1: hidden, mlp-w3>
    >>> run.model, run.dataset, run.noise
    ('tiny', 'facts', 'gaussian-x3-n10-seed1')
    >>> facts = run.candidates()
    >>> int(facts["traced"].sum())
    12

    Args:
        folder: `outputs/<model>/<dataset>/<noise>`.

    Attributes:
        folder: the same.
        model: name of the model's folder.
        dataset: likewise.
        noise: likewise.

    Raises:
        KtraceError: it is not the folder of a run.
    """

    def __init__(self, folder: FolderPath) -> None:
        self._folders = run_folders(folder)
        self.folder = Path(folder)
        self.model, self.dataset, self.noise = self._folders.run.parts[-3:]

    @property
    def mediators(self) -> list[str]:
        """Keys of those that have scores, such as `mlp-w10`."""
        return self._folders.mediator_keys()

    def __fspath__(self) -> str:
        return str(self._folders.run)

    def __repr__(self) -> str:
        return f"<Run {self.folder}: {', '.join(self.mediators) or 'no mediator yet'}>"

    def _repr_html_(self) -> str:
        named = {name: getattr(self, name) for name in ("model", "dataset", "noise")}
        shown = table({**named, "mediators": ", ".join(self.mediators)})
        if not self._folders.analysis.is_dir():
            return shown
        figures = self.figures()
        if _FIRST_FIGURE in figures:
            shown += image(figures[_FIRST_FIGURE], "average indirect effect")
        return shown

    def effects(
        self,
        metrics: Sequence[str] = METRICS,
        limit: int | None = None,
        *,
        partial: bool = False,
    ) -> pd.DataFrame:
        """Every score: `ktrace.load_effects`.

        >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
        >>> run.effects(metrics=["logit"], limit=2)["known_id"].nunique()
        2
        """
        return load_effects(self, limit, metrics, partial=partial)

    def average(
        self,
        by: str | Sequence[str] = ("mediator", "role", "layer"),
        metric: str = METRICS[0],
        cluster: str | None = CLUSTERS[0],
        pool: str = POOLS[0],
        *,
        detail: bool = False,
    ) -> pd.DataFrame:
        """Average indirect effects with their intervals: `ktrace.average`.

        >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
        >>> averages = run.average(by=["mediator", "role"])
        >>> list(averages.columns)
        ['mediator', 'role', 'aie', 'ci_low', 'ci_high', 'n_facts', 'n_clusters']
        """
        return average(self, by, metric, cluster, pool, detail=detail)

    def activations(
        self,
        site: str,
        layer: int,
        role: str | None = None,
        run_kind: str = "clean",
        *,
        known_id: int | None = None,
        partial: bool = False,
    ) -> Activations:
        """States of all facts at once: `ktrace.load_activations`.

        >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
        >>> states, known_ids = run.activations("hidden", layer=4, role="last_subject")
        >>> len(states) == len(known_ids)
        True
        """
        return load_activations(
            self, site, layer, role, run_kind, known_id=known_id, partial=partial
        )

    def candidates(self) -> pd.DataFrame:
        """A row for every fact: what the model predicts, and why it was left out.

        Returns:
            The columns of `candidates.csv`, from the stores as far as they are filled.

        Raises:
            KtraceError: a damaged part.
        """
        clean = CleanRecord.read(self._folders.clean)
        return candidate_table(clean, CorruptedRecord.read(self._folders.corrupted))

    def figures(self) -> dict[str, Path]:
        """PNG files of the analysis by name, such as `aie`; a PDF and an SVG of each lie beside.

        >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
        >>> run.figures()["aie"].name
        'aie.png'

        Raises:
            KtraceError: there is no analysis.
        """
        return {path.stem: path for path in sorted(self._analysis().glob("*.png"))}

    def layers(self) -> dict[str, Any]:
        """The content of `layers.json`: which layers, and how sure.

        >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
        >>> run.layers()["mediator"]
        'mlp-w3'

        Raises:
            KtraceError: there is no analysis, or the file is damaged.
        """
        return self._json("layers.json")

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`: the run in numbers.

        >>> run = ktrace.Run("outputs/tiny/facts/gaussian-x3-n10-seed1")
        >>> run.summary()["n_candidates"]
        12

        Raises:
            KtraceError: there is no analysis, or the file is damaged.
        """
        return self._json("summary.json")

    def _analysis(self) -> Path:
        folder = self._folders.analysis
        if not folder.is_dir():
            raise KtraceError(f"{self.folder} has no analysis: run stage=analyze")
        return folder

    def _json(self, name: str) -> dict[str, Any]:
        path = self._analysis() / name
        try:
            content = json.loads(read_regular(path, _MOST_JSON))
        except FileNotFoundError:
            raise KtraceError(f"{path} does not exist: run stage=analyze") from None
        except (OSError, ValueError, RecursionError) as error:
            raise KtraceError(f"damaged: {path} cannot be read: {error}") from error
        if not isinstance(content, dict):
            raise KtraceError(f"damaged: {path} holds no mapping: run stage=analyze")
        return content
