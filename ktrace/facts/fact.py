"""What a fact is, and a dataset of them with the digest of its content."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ktrace.config.identity import Content
from ktrace.facts.reading import ReadAs
from ktrace.facts.text import occurrences


@dataclass(frozen=True)
class Fact:
    """One prompt with its subject and answer.

    Attributes:
        prompt: from its first character that shows to its last.
        subject: likewise, as the prompt spells it; empty where a pair of prompts has none.
        attribute: the answer. Empty where the answer is what the model predicts.
        subject_start: first character of the subject in the prompt; where the subject stands once,
            it need not be given.
        ending: line breaks that the prompt ended in: no part of it, they stand between it and its
            answer.
        also: other right answers.
        corrupted_prompt: the other prompt of a pair (`noise=pair`); where there is one, there need
            be no subject.
        foil: the wrong answer that `logit_difference` compares with there.
    """

    known_id: int
    prompt: str
    subject: str
    attribute: str
    template: str = ""
    relation_id: str = ""
    subject_start: int = -1
    ending: str = ""
    also: tuple[str, ...] = ()
    corrupted_prompt: str = ""
    foil: str = ""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every right answer."""
        return (self.attribute, *self.also) if self.attribute else ()

    def __post_init__(self) -> None:
        if self.subject_start < 0:
            object.__setattr__(self, "subject_start", self.prompt.index(self.subject))


@dataclass(frozen=True)
class FactSet:
    """All facts of a dataset in their order.

    Attributes:
        facts: in the order of the file.
        digest: SHA-256 of their canonical JSON: what the numbers depend on.
        origin: the config key that gave them, with its value, for messages.
        read_as: how their file was read; None where they come from elsewhere.
    """

    facts: tuple[Fact, ...]
    digest: str
    origin: str = field(default="", compare=False)
    read_as: ReadAs | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def content(self) -> Content:
        """What fingerprints say of it."""
        return Content(self.digest, len(self.facts))


def fact_set(facts: tuple[Fact, ...], origin: str) -> FactSet:
    """Facts with the digest of their content."""
    return FactSet(facts, canonical_digest([_content(fact) for fact in facts]), origin)


def _content(fact: Fact) -> dict[str, object]:
    content = asdict(fact)
    # Where the subject stands once, its place follows from the rest.
    if not fact.subject or len(occurrences(fact.prompt, fact.subject)) == 1:
        del content["subject_start"]
    # A fact without these is the fact that it was before there were such fields.
    for key in ("ending", "also", "corrupted_prompt", "foil"):
        if not content[key]:
            del content[key]
    return content


def canonical_digest(records: Sequence[Mapping[str, object]]) -> str:
    """SHA-256 of records as JSON with sorted keys, no spaces, and no ASCII escapes."""
    text = json.dumps(
        records, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str
    )
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
