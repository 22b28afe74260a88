"""How the command ends, and what a refusal looks like."""

import re
from collections.abc import Callable
from dataclasses import dataclass

_HOW_FAR = re.compile(
    r"^.*(: (\d+ facts|[\d.]+( \w+)? in \d+:\d\d(:\d\d)?(, .*/(s|min|h))?)|hardly tells where.*)\n",
    re.MULTILINE,
)


def said(output: str) -> str:
    """What a command printed, but for how far it was and how wide windows are."""
    return _HOW_FAR.sub("", output)


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
    line = said(ended.stderr)
    assert line.startswith("ktrace: ")
    assert line.count("\n") == 1, ended.stderr
    for part in parts:
        assert part in line
