"""How the command ends, and what a refusal looks like."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Ktrace = Callable[..., Ended]


def refused(ended: Ended, *parts: str) -> None:
    """One line on stderr, with these parts."""
    assert ended.code == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("ktrace: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for part in parts:
        assert part in ended.stderr
