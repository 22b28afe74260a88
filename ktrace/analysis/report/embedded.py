"""The report's heatmap of one fact alone, as a piece of HTML that any page can hold.

The piece is a frame with a page of its own in it: several on one page share no id, style or name,
and what the frame holds reaches nothing outside of it.
"""

import html
from string import Template

from ktrace.analysis.case import TracedCase
from ktrace.analysis.figures.look import Look
from ktrace.analysis.report.assets import as_json, asset, cell_elements, shared_parts
from ktrace.analysis.report.cells import cells_at_tokens, pack_cells, subject_peaks
from ktrace.analysis.report.data import ReportedFact, ReportedRun, means_of, page_data

_MOST_BYTES = 25_000_000  # as of a report
# Pixels: of a token's row in the heatmap, of a line of the prompt, and of all that stands around.
_ROW, _LINE, _AROUND = 22, 22, 600
_LETTERS = 60  # of the prompt in a line, on a narrow page


def embedded_heatmap(case: TracedCase, look: Look) -> str:
    """One prompt and mediator, interactive.

    Args:
        case: what was traced.
        look: the metric that is shown first, and the palette; its limits are not read.

    Returns:
        An element of HTML, some 100 kB: no address in it is fetched, and it runs no script outside
        of its frame.
    """
    model, key = case.model, case.mediator
    clean, corrupted, restored = case.records()
    cells = cells_at_tokens(restored, clean, corrupted, key)
    means = means_of(corrupted.clean), means_of(corrupted.corrupted)
    fact = ReportedFact(clean, *means, [subject_peaks(cells, clean.span, key)])
    n_samples = len(corrupted.corrupted[look.metric])
    run = ReportedRun([key], n_samples, [fact], [], [cells[:, None]], source="Trace.to_frame()")
    packed = pack_cells(run.cells, run.corrupted, look.metric, _MOST_BYTES)
    page = Template(asset("heatmap.html")).substitute(
        shared_parts(),
        title=html.escape(model),
        data=as_json(page_data(run, look.metric, look.palette, packed.shown(1))),
        cells=cell_elements(packed),
    )
    height = _AROUND + _ROW * len(clean.tokens) + _LINE * (len(clean.prompt) // _LETTERS)
    # Scripts run in the frame, which is a stranger to the page around it.
    element = (
        f'<div><iframe title="{html.escape(f"{model}: {key}")}" loading="lazy" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page)}" '
        f'style="width:100%;height:{height}px;border:0"></iframe></div>'
    )
    # Whatever the encoding of the page that it is put into.
    return element.encode("ascii", "xmlcharrefreplace").decode("ascii")
