"""Which facts are dependent, and how much.

Axis: n_facts, of a run.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FACTS = "facts"


@dataclass(frozen=True)
class Clusters:
    """Which facts share what makes them dependent.

    Attributes:
        name: what they share, such as `relation_id`; `facts` where each stands for itself.
        codes: a number for each cluster, `(n_facts,)`.
    """

    name: str
    codes: npt.NDArray[np.intp]

    @classmethod
    def none(cls, n_facts: int) -> "Clusters":
        """Every fact stands for itself."""
        return cls(FACTS, np.arange(n_facts))

    @classmethod
    def of(cls, name: str, labels: Sequence[Hashable]) -> "Clusters":
        """By the value that facts share; a fact without one stands for itself.

        Args:
            name: what the values are, such as `relation_id`.
            labels: of each fact; empty, None or NaN where it has none.
        """
        numbers: dict[Hashable, int] = {}
        # A fact without a label has a key of its own.
        keys = [(i, None) if _is_missing(label) else (0, label) for i, label in enumerate(labels)]
        codes = [numbers.setdefault(key, len(numbers)) for key in keys]
        return cls(name, np.array(codes, dtype=np.intp))

    def __getitem__(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> "Clusters":
        """Of some facts."""
        return replace(self, codes=self.codes[chosen])


def _is_missing(label: Hashable) -> bool:
    return label is None or label == "" or label != label  # NaN


def intraclass_correlation(values: Array, clusters: Clusters) -> float:
    """How alike facts of one cluster are: the share of the variance that lies between clusters.

    One-way analysis of variance with unequal sizes (Donner, *International Statistical Review* 54,
    1986): about 0 for independent facts, 1 for clusters of equal facts.

    Args:
        values: of the facts, `(n_facts,)`; NaN do not count.
        clusters: of the facts.

    Returns:
        NaN where there is one cluster, no cluster of several facts, or no spread.
    """
    has = ~np.isnan(values)
    values, codes = values[has], np.unique(clusters.codes[has], return_inverse=True)[1].ravel()
    sizes = np.bincount(codes)
    n_facts, n_clusters = len(values), len(sizes)
    if n_clusters < 2 or n_clusters == n_facts:
        return float("nan")
    means = np.bincount(codes, values) / sizes
    between = (sizes * (means - values.mean()) ** 2).sum() / (n_clusters - 1)
    within = ((values - means[codes]) ** 2).sum() / (n_facts - n_clusters)
    typical = (n_facts - (sizes**2).sum() / n_facts) / (n_clusters - 1)
    spread = between + (typical - 1) * within
    return float((between - within) / spread) if spread > 0 else float("nan")
