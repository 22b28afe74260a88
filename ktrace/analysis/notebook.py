"""What notebooks show in place of a repr: text that cannot act, and figures within the text.

Text has the notebook's own colours, light or dark; figures keep their paper.
"""

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ktrace.analysis.tokens import visible

_PIXELS_PER_INCH = 120


def quoted(text: str) -> str:
    """A text from data on one line, in a direction of its own."""
    return f"“<bdi>{html.escape(visible(text))}</bdi>”"


def paragraph(content: str) -> str:
    """A paragraph of escaped text."""
    return f'<p style="margin:0.3em 0">{content}</p>'


def table(told: Mapping[str, str]) -> str:
    """Names and texts, a row each."""
    lines = "".join(
        f'<tr><th style="text-align:left">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(visible(text))}</td></tr>'
        for name, text in told.items()
    )
    return f"<table><tbody>{lines}</tbody></table>"


def image(source: Figure | Path, title: str) -> str:
    """A figure, or a PNG file, in the text itself."""
    if isinstance(source, Path):
        content = source.read_bytes()
    else:
        stream = io.BytesIO()
        source.savefig(stream, format="png", dpi=_PIXELS_PER_INCH)
        content = stream.getvalue()
    data = base64.b64encode(content).decode("ascii")
    # Letters in it are dark, whatever the notebook's theme.
    return (
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}" '
        'style="max-width:100%;background:#ffffff">'
    )
