"""How positions become the rows of a figure: role schemes, one-token subjects, pooling.

Stores hold one of the six roles of the scheme `rome` for each position; coarser schemes group them.

Axes: n_positions, of a prompt; n_rows, those of a scheme.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ktrace.terms import CLUSTERS, CONTRASTS, ENOUGH, ROLES, SMALLEST_EFFECT

SCHEMES: dict[str, dict[str, str]] = {
    "rome": {role: role for role in ROLES},
    # Middle subject tokens have no row in the published four-row figure.
    "seed": {
        "first subject": "first subject",
        "last subject": "last subject",
        "first subsequent": "further",
        "further": "further",
        "last": "last",
    },
}


@dataclass(frozen=True)
class Averaging:
    """How effects at positions are averaged into rows.

    Attributes:
        scheme: `rome` (six rows) or `seed` (four).
        single_token: where the only token of a subject counts: `last`, under last subject alone;
            `both`, under first subject, too, as in the published averages.
        pool: what weighs the same: `facts`, or, as in the published averages, `positions`.
        cluster: what facts share that makes them dependent, one of `ktrace.terms.CLUSTERS`; None
            where facts count as independent.
        interval: what intervals say was drawn: `facts`, or `facts_and_samples` of the noise.
        smallest: effects and differences below it count as none, in the metric's unit.
        share: of the total effect, which the smallest window named brings back.
        contrasts: paired differences within a run: of `ktrace.terms.CONTRASTS`, or written out
            (`ktrace.terms.contrast_sides`).
    """

    scheme: str = "rome"
    single_token: str = "last"
    pool: str = "facts"
    cluster: str | None = CLUSTERS[0]
    interval: str = "facts"
    smallest: float = SMALLEST_EFFECT
    share: float = ENOUGH
    contrasts: tuple[str, ...] = CONTRASTS


def rows(scheme: str) -> tuple[str, ...]:
    """Rows of a scheme, in the order of the prompt."""
    return tuple(dict.fromkeys(SCHEMES[scheme].values()))


def membership(
    roles: Sequence[str], span: Sequence[int], averaging: Averaging
) -> npt.NDArray[np.float64]:
    """Which positions of one fact belong to which rows.

    Args:
        roles: the stored role of each position; empty before the subject.
        span: first position of the subject, and one past its last.
        averaging: its `scheme` and `single_token` are read.

    Returns:
        `(n_positions, n_rows)`, 1 where a position counts in a row, else 0.
    """
    grouping, names = SCHEMES[averaging.scheme], rows(averaging.scheme)
    members = np.zeros((len(roles), len(names)))
    for position, role in enumerate(roles):
        if role in grouping:
            members[position, names.index(grouping[role])] = 1
    start, stop = (int(bound) for bound in span)
    # Where the prompt ends with the subject, the position is `last` and stays that alone.
    if averaging.single_token == "both" and stop - start == 1 and roles[start] == "last subject":
        members[start, names.index("first subject")] = 1
    return members
