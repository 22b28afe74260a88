"""Write `pairs.jsonl`: pairs of prompts for `noise=pair`, made of the facts in `facts.jsonl`.

The prompts of a pair have as many tokens as each other (in the embedded model's tokenizer), and the
embedded model predicts the right answer after both: that of the first is the pair's answer, that of
the second its foil. The program draws nothing: it writes the same file again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).resolve().parent
# Pairs of each kind of change: another subject, other words for the relation, or both.
WANTED = {"subject": 48, "relation": 36, "both": 36}


class Said(NamedTuple):
    """A prompt that the embedded model may know the answer to."""

    subject: str
    relation: str
    template: str
    answer: str

    @property
    def prompt(self) -> str:
        """The template filled."""
        return self.template.format(self.subject)


class Known:
    """What the embedded model says."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self._found: dict[Said, bool] = {}

    def ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text."""
        return tuple(self._tokenizer(text)["input_ids"])

    def __contains__(self, said: Said) -> bool:
        if said not in self._found:
            prompt = self.ids(said.prompt)
            answer = self.ids(f"{said.prompt} {said.answer}")
            with torch.inference_mode():
                logits = self._model(torch.tensor([prompt])).logits[0, -1]
            self._found[said] = int(logits.argmax()) == answer[len(prompt)]
        return self._found[said]

    def apart(self, one: Said, other: Said) -> int | None:
        """At how many places two prompts have other tokens; None where one is longer."""
        mine, theirs = self.ids(one.prompt), self.ids(other.prompt)
        if len(mine) != len(theirs):
            return None
        return sum(a != b for a, b in zip(mine, theirs, strict=True))


def kind_of(one: Said, other: Said) -> str | None:
    """What changes from one to the other; None where that is no pair."""
    if one.answer == other.answer:
        return None
    if one.relation == other.relation:
        same = one.template == other.template and one.subject != other.subject
        return "subject" if same else None
    return "relation" if one.subject == other.subject else "both"


def others(
    one: Said, kind: str, facts: list[Said], templates: dict[str, list[str]]
) -> Iterator[Said]:
    """What may stand against a fact: of another relation, in all its words for it."""
    for fact in facts:
        words = [one.template] if kind == "subject" else templates[fact.relation]
        for template in words:
            other = fact._replace(template=template)
            if kind_of(one, other) == kind:
                yield other


def pairs(known: Known, facts: list[Said]) -> Iterator[dict[str, object]]:
    """So many of each kind, from facts in their order: each the first prompt once in a kind."""
    templates: dict[str, list[str]] = defaultdict(list)
    for fact in facts:
        if fact.template not in templates[fact.relation]:
            templates[fact.relation].append(fact.template)
    for kind, wanted in WANTED.items():
        used: Counter[Said] = Counter()
        for fact in facts:
            if wanted == 0:
                break
            variants = [fact]
            if kind == "relation":  # few subjects have several relations: in other words, too
                variants = [fact._replace(template=words) for words in templates[fact.relation]]
            for one in variants:
                found = [
                    (apart, used[other], other)
                    for other in others(one, kind, facts, templates)
                    if (apart := known.apart(one, other)) is not None
                ]
                # Few words apart, and each second prompt seldom; in the order of the facts.
                found.sort(key=lambda pair: (pair[1], pair[0]))
                right = (other for *_, other in found if one in known and other in known)
                other = next(right, None)
                if other is None or wanted == 0:
                    continue
                used[other] += 1
                wanted -= 1
                yield {
                    "prompt": one.prompt,
                    "subject": one.subject,
                    "attribute": one.answer,
                    "corrupted_prompt": other.prompt,
                    "foil": other.answer,
                    "relation_id": one.relation,
                    "change": kind,
                }
        assert wanted == 0, f"too few pairs where the change is of kind {kind}"


def main() -> None:
    """Write the file."""
    lines = (DATA / "facts.jsonl").read_text("utf-8").splitlines()
    facts = [
        Said(fact["subject"], fact["relation_id"], fact["template"], fact["attribute"])
        for fact in map(json.loads, lines)
    ]
    found = pairs(Known(DATA / "tiny"), facts)
    # The kinds in turn, so that the head of the file is a fair small sample.
    by_kind: dict[object, list[dict[str, object]]] = defaultdict(list)
    for pair in found:
        by_kind[pair["change"]].append(pair)
    turns = max(map(len, by_kind.values()))
    mixed = [some[n] for n in range(turns) for some in by_kind.values() if n < len(some)]
    with (DATA / "pairs.jsonl").open("w", encoding="utf-8") as stream:
        for number, pair in enumerate(mixed):
            stream.write(json.dumps({"known_id": number, **pair}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
