"""Pairs of prompts in a model's tokens: what the corrupted run of `noise=pair` reads.

Both prompts have as many tokens, and the answer has the same ones after either: then a state at one
place of the one run belongs to the same place of the other.
"""

from collections.abc import Sequence
from dataclasses import replace

from ktrace.config import DatasetConfig, NoiseKind
from ktrace.facts import Fact, changed_span
from ktrace.lm.reader import Reads
from ktrace.tracing.encode import Encoder, encode_facts
from ktrace.tracing.encoded import EncodedFact, EncodedPair
from ktrace.tracing.noise import parting

NO_PAIR = "no corrupted_prompt"
OTHER_LENGTH = "corrupted_prompt has more or fewer tokens than the prompt"
OTHER_ANSWER = "the answer has other tokens after corrupted_prompt"
SAME_TOKENS = "corrupted_prompt has the tokens of the prompt"
OTHER_PLACE = "the foil does not begin where the answer does"
SAME_FOIL = "the foil begins with the answer's tokens, or the answer with the foil's"


def encoded_for(
    kind: NoiseKind, lm: Reads, facts: Sequence[Fact], dataset: DatasetConfig
) -> list[EncodedFact]:
    """Facts in a model's tokens as a noise takes them; for `pair`, with what corrupted runs read.

    Raises:
        KtraceError: see `Encoder`.
    """
    encoded = encode_facts(lm, facts, dataset)
    if kind is not NoiseKind.pair:
        return encoded
    encoder = Encoder(lm, dataset)
    return [
        replace(own, pair=_pair(encoder, fact, own))
        for fact, own in zip(facts, encoded, strict=True)
    ]


def _pair(encoder: Encoder, fact: Fact, own: EncodedFact) -> EncodedPair:
    problem = own.problem if fact.corrupted_prompt else NO_PAIR
    ids: tuple[int, ...] = ()
    if not problem:
        problem, ids = _corrupted(encoder, fact, own)
    if problem:
        return EncodedPair((), own.span, problem)
    foil_ids, foil_problem = _foil(encoder, fact, own) if fact.foil else ((), "")
    return EncodedPair(ids, changed_span(own.prompt.input_ids, ids), "", foil_ids, foil_problem)


def _corrupted(encoder: Encoder, fact: Fact, own: EncodedFact) -> tuple[str, tuple[int, ...]]:
    """Why the other prompt cannot be read in place of the first one, and its tokens."""
    prompt, first = fact.corrupted_prompt, fact.prompt
    other = replace(fact, prompt=prompt, corrupted_prompt=first, subject="", subject_start=0)
    if fact.attribute:
        second = encoder.encoded(other)
        ids = second.prompt.input_ids
        if second.problem:
            return f"after corrupted_prompt: {second.problem}", ids
        if second.answers != own.answers:
            return OTHER_ANSWER, ids
    else:  # what is predicted is read behind the blank tokens of the prompt's own answer
        encoded, _ = encoder.located(other)
        between = own.prompt.input_ids[len(own.prompt.input_ids) - own.n_between :]
        ids = encoded.input_ids + between
    if len(ids) != len(own.prompt.input_ids):
        return OTHER_LENGTH, ids
    return SAME_TOKENS if ids == own.prompt.input_ids else "", ids


def _foil(encoder: Encoder, fact: Fact, own: EncodedFact) -> tuple[tuple[int, ...], str]:
    """Tokens of the foil that are scored, or why there are none."""
    said = encoder.with_answer(own, fact, fact.foil)
    if said.problem:
        return (), f"of the foil: {said.problem}"
    if said.prompt.input_ids != own.prompt.input_ids:
        return (), OTHER_PLACE
    if any(parting(ids, said.answer_ids) is None for ids in own.answers):
        return (), SAME_FOIL
    return said.answer_ids, ""
