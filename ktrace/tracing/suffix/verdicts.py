"""Verdicts of the proof: what each is about, and the files that keep them beside a model's runs.

A file is written once, as a whole, and holds one verdict that is good. Others are not kept: what
fails is run by the reference engine, beside whose time a proof is nothing.
"""

import hashlib
import json
import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from ktrace.errors import KtraceError
from ktrace.files import write_text
from ktrace.tracing.engine import Shape
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.suffix.limits import Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        problem: why the suffix engine is not proven; None where it is.
        packed: whether suffixes of several positions may share block calls.
        against_packs: why not, where they would be worth while.
    """

    problem: str | None = None
    packed: bool = False
    against_packs: str | None = None


@dataclass(frozen=True)
class Judged:
    """What a verdict is about: all that it hangs on beside the model.

    Attributes:
        mediators: that were restored.
        longest: of the prompts.
        limits: of the engine.
    """

    mediators: frozenset[Mediator]
    longest: Shape
    limits: Limits

    def reaches(self, other: "Judged") -> bool:
        """Whether what holds here holds there for the mediators of both: for shorter prompts."""
        return (
            self.limits == other.limits
            and self.longest.n_positions >= other.longest.n_positions
            and self.longest.n_answer >= other.longest.n_answer
        )


class VerdictFiles:
    """Good verdicts on one model as it was loaded, in files.

    What is damaged, of another format or of anything else is no verdict: the model is judged again.

    Args:
        folder: where they lie; it need not be there.
        about: what else numbers hang on: weights, formats, device, versions. JSON values.
        as_loaded: see `ktrace.tracing.suffix.judge.state_of`: one changed since is another model.
    """

    def __init__(self, folder: Path, about: Mapping[str, object], as_loaded: Hashable) -> None:
        self.as_loaded = as_loaded
        self._folder = folder
        self._about = json.loads(json.dumps(about))
        self._name = _digest(about)

    def known(self, asked: Judged) -> Iterator[tuple[Judged, Verdict]]:
        """Verdicts that serve some of the mediators asked for, with those alone."""
        by_key = {mediator.key: mediator for mediator in asked.mediators}
        for path in sorted(self._folder.glob(f"{self._name}-*.json")):
            try:
                found = json.loads(path.read_text("utf-8"))
                said = {key: value for key, value in found.items() if key != "sha256"}
                if found["sha256"] != _digest(said) or said["about"] != self._about:
                    continue
                about, verdict = said["judged"], Verdict(**said["verdict"])
                judged = Judged(
                    frozenset(by_key[key] for key in about["mediators"] if key in by_key),
                    Shape(**about["longest"]),
                    asked.limits,
                )
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                continue
            if about["limits"] == _limits(asked) and judged.mediators:
                yield judged, verdict

    def keep(self, judged: Judged, verdict: Verdict) -> None:
        """Write a good verdict; where that cannot be, the next run judges again."""
        if verdict.problem is not None:
            return
        about = {
            "mediators": sorted(mediator.key for mediator in judged.mediators),
            "longest": judged.longest._asdict(),
            "limits": _limits(judged),
        }
        said = {
            "proven": "engine=suffix gives the numbers of engine=reference, to rounding",
            "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "judged": about,
            "verdict": asdict(verdict),
            "about": self._about,
        }
        text = json.dumps(said | {"sha256": _digest(said)}, indent=1, ensure_ascii=False)
        try:
            write_text(self._folder / f"{self._name}-{_digest(about)}.json", text + "\n")
        except KtraceError as error:
            log.debug("a verdict is not kept: %s", error)


def _limits(judged: Judged) -> object:
    """As JSON has them."""
    return json.loads(json.dumps(asdict(judged.limits)))


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
