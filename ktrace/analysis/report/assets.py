"""What every page has: its style, its script, the policy that lets that run, and its data.

A page's policy lets one script run, by digest, and nothing be fetched.
"""

import base64
import hashlib
import json
from importlib.resources import files

from ktrace.analysis.report.cells import PackedCells

_SCRIPTS = (
    *("cells.js", "table.js", "colours.js", "heatmap.js", "explorer.js", "save.js"),
    "main.js",
)


def asset(name: str) -> str:
    """A file of this folder."""
    return (files("ktrace.analysis.report") / name).read_text("utf-8")


def shared_parts() -> dict[str, str]:
    """What fills any page's template beside its own texts and data."""
    script = '"use strict";\n' + "\n".join(asset(name) for name in _SCRIPTS)
    return {
        "policy": _policy(script),
        "style": asset("report.css"),
        "detail": asset("detail.html"),
        "script": script,
    }


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The scripts place and size what they draw.
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def as_json(content: object) -> str:
    """JSON for a script element, in which only `<` can end or change what is read."""
    # NaN is no JSON.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def cell_elements(cells: PackedCells) -> str:
    """Chunks of cells, an element each."""
    # What stands around a chunk is counted in cells.py.
    return "\n".join(
        f'<script type="application/octet-stream" id="cells-{metric}-{number}">{chunk}</script>'
        for metric, chunks in cells.chunks.items()
        for number, chunk in enumerate(chunks)
    )
