"""Write the table of how well the engines agree on each family into docs/models.md.

Run it after a family has changed: `python -m tests.tracing.parity_table`.
"""

from collections.abc import Sequence

import numpy as np

from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.terms import MEDIATOR_NAMES
from ktrace.tracing.engine import Case, Engine
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.suffix.engine import SuffixEngine
from tests.support.families import NOT_REPLAYED, TINY_FAMILIES, mediators_of, tiny_model
from tests.support.models import known_case
from tests.support.places import ROOT
from tests.tracing.agreement import NOISE, made

BEGIN = "<!-- parity table: tests/tracing/parity_table.py -->"
END = "<!-- end of the parity table -->"


def agreement(
    lm: LanguageModel, engine: Engine, cases: Sequence[Case]
) -> dict[str, tuple[float, float]]:
    """By mediator name: the largest difference to the reference engine, and the spread of p."""
    mediators = mediators_of(lm)
    reference = ReferenceEngine(lm, NOISE)
    found = {mediator.name: (0.0, 0.0) for mediator in mediators}
    for case in cases:
        [(_, expected)] = reference.restored([case], mediators)
        ours = expected
        if isinstance(engine, SuffixEngine):
            [(_, ours)] = engine.restored([case], mediators)
        for mediator in mediators:
            there = expected[mediator.key]["probability"]
            here = ours[mediator.key]["probability"]
            difference, spread = found[mediator.name]
            found[mediator.name] = (
                max(difference, float(np.nanmax(np.abs(here - there)))),
                max(spread, float(np.nanmax(there) - np.nanmin(there))),
            )
    return found


def row_of(architecture: str) -> str:
    """What the table says of a family."""
    lm = language_model(tiny_model(architecture))
    replayed = architecture not in NOT_REPLAYED
    engine = made(lm)
    found = agreement(lm, engine, [known_case(lm, seed, 7, 2, 4) for seed in (1, 2)])
    cells = []
    for name in MEDIATOR_NAMES:
        if name not in found:
            cells.append("none")
            continue
        difference, spread = found[name]
        cells.append(f"{difference:.0e} of {spread:.2f}" if replayed else f"of {spread:.2f}")
    kind = f"reference: {NOT_REPLAYED[architecture]}" if not replayed else "reference"
    if isinstance(engine, SuffixEngine):
        kind = "suffix, packed" if engine.packed else "suffix"
    return f"| `{architecture}` | {kind} | {' | '.join(cells)} |"


def table() -> str:
    """The table in Markdown."""
    names = [f"`{name}`" for name in MEDIATOR_NAMES]
    lines = [
        f"| Architecture | Engine | {' | '.join(names)} |",
        "| --- | --- |" + " --- |" * len(names),
        *(row_of(architecture) for architecture in sorted(TINY_FAMILIES)),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    document = ROOT / "docs" / "models.md"
    before, rest = document.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", "utf-8")
