"""A made-up run whose every text tries to become part of a page."""

import shutil
from pathlib import Path
from typing import Any

from ktrace.store import CLEAN, RunFolders
from tests.support.stores import write_run

SUBJECT = "<script>document.title='taken'</script>"
TEXTS = {
    "prompt": f'Who is {SUBJECT} & "co"? </script><!--',
    "subject": SUBJECT,
    "attribute": "</td><img src=x onerror=\"document.title='taken'\">",
    "predicted": "&lt;b&gt; `${7*7}` {{7*7}}",
}
LEFT_OUT = "</script><h1>left & out</h1>"
# Tags, entities and templates, in what HTML and SVG are given.
TOKENS = (
    "<b>bold</b>",
    "&lt;i&gt;",
    "%{x}",
    "<br>",
    "</script>",
    "&amp;",
    "\\u003c",
    " \n",
    "$x^2$",
)
MODEL = "<i>to&y"


def write_hostile_run(root: Path) -> RunFolders:
    """The run of `stores.py` with other texts; its numbers stay."""
    plain = write_run(root / "plain")
    folders = RunFolders(root / "outputs" / MODEL / "made'\"up" / plain.run.name)
    for record in plain.clean.read(*CLEAN):
        n_tokens = len(record["tokens"])
        changed: dict[str, Any] = TEXTS | {"tokens": [*TOKENS, *TOKENS][:n_tokens]}
        changed["offsets"] = [(0, len(TEXTS["prompt"]))] * n_tokens
        if record["left_out"]:
            changed["left_out"] = LEFT_OUT
        with folders.clean.writer(plain.clean.fingerprint() or {}) as writer:
            writer.add(record | changed)
    # As older versions left them: parts that were made under another name would be refused.
    shutil.copytree(plain.run, folders.run, ignore=shutil.ignore_patterns("store.json"))
    return folders
