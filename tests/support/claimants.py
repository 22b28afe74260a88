"""Other processes that hold claims on a store."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.places import ROOT

_PROGRAM = """
import sys
from pathlib import Path
from ktrace.store.claims import Claims
claims = Claims(Path(sys.argv[1]))
print(claims.take([int(index) for index in sys.argv[2:]]), flush=True)
sys.stdin.read()
"""


@contextmanager
def claimed_elsewhere(folder: Path, indices: Sequence[int]) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds facts of a store's folder until its input ends (`communicate`)."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(folder), *map(str, indices)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        yield other
