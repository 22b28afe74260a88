"""A run's scores as labelled arrays, for those who compute with xarray (an extra)."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktrace.analysis.effects import complete_mediators
from ktrace.analysis.run_folder import FolderPath
from ktrace.analysis.stored import batches
from ktrace.errors import KtraceError
from ktrace.terms import METRICS, has_heads

if TYPE_CHECKING:
    import xarray


def to_xarray(
    run_folder: FolderPath,
    metric: str = METRICS[0],
    limit: int | None = None,
    *,
    partial: bool = False,
) -> "xarray.Dataset":
    """Every score of a run in one metric, in the metric's unit.

    Prompts differ in length: what is behind a prompt's end is NaN, or empty text. All scores are in
    memory at once. `found["hidden"] - found["corrupted"]` are the indirect effects of `hidden`,
    `found["hidden-noise"] - found["clean"]` those of a mediator that noises, and
    `found["hidden"].to_dataframe()` is a frame again. Needs xarray: `pip install 'ktrace[xarray]'`.

    >>> found = ktrace.to_xarray("outputs/tiny/facts/gaussian-x3-n10-seed1", limit=2)
    >>> effects = found["hidden"] - found["corrupted"]
    >>> effects.mean("sample").dims
    ('fact', 'layer', 'position')

    Args:
        run_folder: `outputs/<model>/<dataset>/<noise>`.
        metric: of the scores.
        limit: only facts among the first `limit` of the dataset.
        partial: whether to read what is there of a run that is not finished.

    Returns:
        A variable for each mediator, by its key, `(fact, sample, layer, position)`, of one with
        heads `(fact, sample, layer, head, position)`; NaN where it did not act; and `clean` and
        `corrupted`, `(fact, sample)`, all float32. Coordinates: `fact`, the known_id; `prompt,
        subject, attribute, relation_id`, `(fact,)`; `token, role`, `(fact, position)`.

    Raises:
        KtraceError: xarray is not installed; what `load_effects` raises.
    """
    try:
        import xarray
    except ImportError:
        raise KtraceError("to_xarray needs xarray: pip install 'ktrace[xarray]'") from None
    found, keys = complete_mediators(run_folder, limit, [metric], partial=partial)
    facts = [found.clean[index] for index in found.traced]
    place = {index: number for number, index in enumerate(found.traced)}
    n_positions = max(len(fact.tokens) for fact in facts)
    variables: dict[str, tuple[tuple[str, ...], npt.NDArray[np.float32]]] = {}
    for key in keys:
        heads = ("head",) if has_heads(key) else ()
        for record in (record.at_positions() for batch in batches(found, key) for record in batch):
            own = record.scores[metric] if heads else record.by_unit(metric)
            if key not in variables:
                shape = (len(facts), *own.shape[:-1], n_positions)
                scores = np.full(shape, np.nan, dtype=np.float32)
                variables[key] = (("fact", "sample", "layer", *heads, "position"), scores)
            variables[key][1][place[record.index]][..., record.places] = own
    corrupted = [found.corrupted[index] for index in found.traced]
    for name in ("clean", "corrupted"):
        values = np.stack([getattr(record, name)[metric] for record in corrupted])
        variables[name] = (("fact", "sample"), values.astype(np.float32))
    coordinates = {
        "fact": [fact.known_id for fact in facts],
        **{
            name: ("fact", [getattr(fact, name) for fact in facts])
            for name in ("prompt", "subject", "attribute", "relation_id")
        },
        **{
            name: (
                ("fact", "position"),
                [[*texts, *[""] * (n_positions - len(texts))] for texts in by_fact],
            )
            for name, by_fact in (
                ("token", [fact.tokens for fact in facts]),
                ("role", [fact.roles for fact in facts]),
            )
        },
    }
    return xarray.Dataset(variables, coordinates, {"metric": metric})
