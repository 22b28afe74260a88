"""What the stages and the Python API share: a model, a located fact, a measured noise."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ktrace.config import ModelConfig, NoiseConfig
from ktrace.errors import KtraceError
from ktrace.facts import Fact, FactSet, Span, token_span
from ktrace.lm.families import ModulePaths
from ktrace.lm.load import LanguageModel, load_language_model
from ktrace.lm.prompt import EncodedPrompt, answer_token_ids, encode_prompt, subject_token_ids
from ktrace.lm.source import ModelSource
from ktrace.tracing.clean import CleanRun, clean_run
from ktrace.tracing.noise import MeasuredNoise, NoiseChoice, Subject, make_noise


@dataclass(frozen=True)
class EncodedFact:
    """A fact in its model's tokens.

    Attributes:
        prompt: its tokens.
        span: positions of the subject.
        answer_ids: tokens that are scored; none where the answer merges with the prompt.
    """

    prompt: EncodedPrompt
    span: Span
    answer_ids: tuple[int, ...]

    @property
    def n_read(self) -> int:
        """Tokens that the model reads: an answer's last one is only predicted."""
        return len(self.prompt.input_ids) + max(0, len(self.answer_ids) - 1)


def load_configured(source: ModelSource, config: ModelConfig) -> LanguageModel:
    """Load a model that was found, as its config says.

    Raises:
        KtraceError: as `load_language_model`.
    """
    return load_language_model(
        source,
        dtype=config.dtype.value,
        device=config.device,
        device_map=config.device_map,
        attention=config.attention,
        quantization=config.quantization.value if config.quantization else None,
        trust_remote_code=config.trust_remote_code,
        allow_pickle=config.allow_pickle,
        paths=ModulePaths(**asdict(config.modules)) if config.modules else None,
    )


def encode_fact(lm: LanguageModel, fact: Fact, *, whole_answer: bool) -> EncodedFact:
    """Tokens of a fact's prompt, of its subject, and of its answer: the first one, or all.

    Where a fact has no answer, that is the token which the model predicts.

    Raises:
        KtraceError: no token holds any of the subject, or the model has no embedding for a token.
    """
    prompt, span = _located(lm, fact)
    _require_known(lm, fact, prompt.input_ids)
    if fact.attribute:
        answer = answer_token_ids(lm.tokenizer, fact.prompt, fact.attribute)
        _require_known(lm, fact, answer)
    elif _too_long(lm, len(prompt.input_ids)):
        answer = ()  # `clean_fact` says why it is no candidate
    else:
        answer = clean_run(lm, prompt.input_ids).predicted_ids
    return EncodedFact(prompt, span, answer if whole_answer else answer[:1])


def _located(lm: LanguageModel, fact: Fact) -> tuple[EncodedPrompt, Span]:
    prompt = encode_prompt(lm.tokenizer, fact.prompt)
    begin = fact.subject_start
    try:
        return prompt, token_span(prompt.offsets, begin, begin + len(fact.subject))
    except ValueError as error:
        raise KtraceError(
            f"known_id={fact.known_id}: the tokenizer of this model keeps nothing of the subject "
            f"{fact.subject!r} in the prompt {fact.prompt!r}"
        ) from error


def clean_fact(lm: LanguageModel, fact: Fact, encoded: EncodedFact) -> tuple[CleanRun | None, str]:
    """The clean run, and why the fact is no candidate: empty where it is one.

    A prompt that is longer than the model reads is not run: it has no clean run.

    Raises:
        KtraceError: the model gives no numbers.
    """
    if _too_long(lm, encoded.n_read):
        return None, f"the prompt is longer than the model's {lm.max_positions} positions"
    run = clean_run(lm, encoded.prompt.input_ids, encoded.answer_ids)
    require_numbers(lm, fact, "clean run", run.predicted_probability)
    if not encoded.answer_ids:
        return run, "the answer merges with the prompt's last token"
    if encoded.answer_ids != run.predicted_ids:
        return run, "another answer is predicted"
    return run, ""


def _too_long(lm: LanguageModel, n_tokens: int) -> bool:
    return lm.max_positions is not None and n_tokens > lm.max_positions


def require_numbers(lm: LanguageModel, fact: Fact, run: str, scores: Any) -> None:
    """Refuse scores that are NaN: they would pass every later stage as if they were results.

    Raises:
        KtraceError: naming the fact, and what to change.
    """
    if np.isnan(scores).any():
        dtype = str(lm.model.dtype).removeprefix("torch.")
        raise KtraceError(
            f"known_id={fact.known_id}: the {run} gives no numbers (NaN) with model.dtype={dtype}: "
            "another model.dtype or, for a corrupted run, a smaller noise keeps it finite"
        )


def measured_noise(
    lm: LanguageModel,
    noise: NoiseConfig,
    facts: FactSet,
    encoded: Sequence[EncodedFact],
    noise_facts: FactSet | None = None,
    *,
    whole_answer: bool = False,
) -> MeasuredNoise:
    """The noise of a config, measured on every subject of a dataset.

    Args:
        lm: the model.
        noise: the config.
        facts: the whole dataset, so that `dataset.limit` does not change a fact's numbers.
        encoded: the same.
        noise_facts: what the noise is measured on and takes partners from; None for `facts`.
        whole_answer: whether all tokens of an answer are scored, as in `encoded`.
    """
    choice = NoiseChoice(
        kind=noise.kind.value,
        replace=noise.replace,
        multiple=noise.level_multiple,
        std=noise.std,
        samples=noise.samples,
        seed=noise.seed,
        degrees=noise.degrees,
        foil=noise.foil.value,
    )
    subjects = [
        _subject(lm, fact, own.prompt, own.span, own.answer_ids)
        for fact, own in zip(facts.facts, encoded, strict=True)
    ]
    if noise_facts is None:
        return make_noise(choice, lm, subjects)
    measured_on = []
    for fact in noise_facts.facts:
        answer = answer_token_ids(lm.tokenizer, fact.prompt, fact.attribute)
        scored = answer if whole_answer else answer[:1]
        measured_on.append(_subject(lm, fact, *_located(lm, fact), scored))
    return make_noise(choice, lm, subjects, measured_on)


def _subject(
    lm: LanguageModel, fact: Fact, prompt: EncodedPrompt, span: Span, answer_ids: tuple[int, ...]
) -> Subject:
    alone = subject_token_ids(lm.tokenizer, fact.subject)
    _require_known(lm, fact, alone)
    in_prompt = prompt.input_ids[span.start : span.stop]
    return Subject(alone, in_prompt, fact.subject, fact.relation_id, answer_ids)


def _require_known(lm: LanguageModel, fact: Fact, ids: tuple[int, ...]) -> None:
    beyond = [token for token in ids if token >= lm.n_embeddings]
    if beyond:
        raise KtraceError(
            f"known_id={fact.known_id}: token {beyond[0]} ({decoded(lm, beyond[:1])!r}) is beyond "
            f"the model's {lm.n_embeddings} embeddings: tokenizer and weights in model.path do not "
            "belong together"
        )


def decoded(lm: LanguageModel, tokens: Sequence[int]) -> str:
    """Tokens as text."""
    text: str = lm.tokenizer.decode(tokens)
    return text.replace("\0", "␀")  # HDF5 ends a text at NUL
