"""One fact through tokenizer and model: what a part of the clean store holds of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ktrace.errors import KtraceError
from ktrace.facts import Fact, Span, role_of_positions, token_span
from ktrace.lm.prompt import EncodedPrompt, answer_token_ids, encode_prompt, subject_token_ids

if TYPE_CHECKING:
    from ktrace.lm.load import LanguageModel


@dataclass(frozen=True)
class Encoded:
    """A fact in tokens.

    Attributes:
        prompt: its prompt.
        span: its subject's place in the prompt.
        answer_ids: what is scored; none where the answer merges with the prompt's last token.
    """

    prompt: EncodedPrompt
    span: Span
    answer_ids: tuple[int, ...]

    @property
    def n_read(self) -> int:
        """Tokens that the model reads: an answer's last one is only predicted."""
        return len(self.prompt.input_ids) + max(0, len(self.answer_ids) - 1)


def encode(lm: "LanguageModel", fact: Fact, *, whole_answer: bool) -> Encoded:
    """A fact in a model's tokens.

    Args:
        lm: the model.
        fact: which.
        whole_answer: all the answer's tokens, not only the first.

    Raises:
        KtraceError: no token holds the subject, or the model has no embedding for a token.
    """
    prompt = encode_prompt(lm.tokenizer, fact.prompt)
    begin = fact.subject_start
    try:
        span = token_span(prompt.offsets, begin, begin + len(fact.subject))
    except ValueError as error:
        raise KtraceError(
            f"known_id={fact.known_id}: the tokenizer of this model keeps nothing of the subject "
            f"{fact.subject!r} in the prompt {fact.prompt!r}"
        ) from error
    answer = answer_token_ids(lm.tokenizer, fact.prompt, fact.attribute)
    answer = answer if whole_answer else answer[:1]
    _require_known(lm, fact, prompt.input_ids + answer)
    return Encoded(prompt, span, answer)


def subject_ids(lm: "LanguageModel", fact: Fact) -> tuple[int, ...]:
    """Token ids of a fact's subject on its own.

    Raises:
        KtraceError: the model has no embedding for a token.
    """
    ids = subject_token_ids(lm.tokenizer, fact.subject)
    _require_known(lm, fact, ids)
    return ids


def clean_record(lm: "LanguageModel", index: int, fact: Fact, encoded: Encoded) -> dict[str, Any]:
    """Run a fact's prompt once, and say whether it is a candidate.

    A prompt that is longer than the model reads is not run: it is left out, with the reason.

    Args:
        lm: the model.
        index: the fact's row in its dataset.
        fact: which.
        encoded: the same in tokens.

    Raises:
        KtraceError: the model gives no numbers.
    """
    import torch

    from ktrace.tracing.clean import SITES, clean_run

    prompt, answer = encoded.prompt, encoded.answer_ids
    result = None
    if lm.max_positions is not None and encoded.n_read > lm.max_positions:
        left_out = f"the prompt is longer than the model's {lm.max_positions} positions"
    else:
        result = clean_run(lm, prompt.input_ids, answer)
        require_numbers(lm, fact, "clean run", result.predicted_probability)
        if not answer:
            left_out = "the answer merges with the prompt's last token"
        else:
            left_out = "" if answer == result.predicted_ids else "another answer is predicted"
    record: dict[str, Any] = {
        **asdict(fact),
        "index": index,
        "left_out": left_out,
        "is_candidate": not left_out,
        "input_ids": prompt.input_ids,
        "tokens": prompt.tokens,
        "offsets": prompt.offsets,
        "roles": [role or "" for role in role_of_positions(encoded.span, len(prompt.input_ids))],
        "span": encoded.span,
        "answer_ids": answer,
        "predicted_ids": result.predicted_ids if result else (),
        "predicted": decoded(lm, result.predicted_ids) if result else "",
        "predicted_probability": result.predicted_probability if result else float("nan"),
        "probability": result.probability if result else float("nan"),
    }
    for site in SITES:
        # Not every family has all sites; and nothing ever restores what is left out.
        states = result.activations.get(site) if result else None
        if states is None:
            states = torch.empty(0, 0, 0, dtype=lm.model.dtype)
        elif left_out:
            states = states[:0, :0, :0]
        # numpy has no bfloat16: its bits travel as uint16.
        record[site] = np.ascontiguousarray(
            (states.view(torch.uint16) if states.dtype == torch.bfloat16 else states).numpy()
        )
    return record


def require_numbers(lm: "LanguageModel", fact: Fact, run: str, scores: Any) -> None:
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


def decoded(lm: "LanguageModel", tokens: Sequence[int]) -> str:
    """The text of tokens."""
    text: str = lm.tokenizer.decode(tokens)
    return text.replace("\0", "␀")  # HDF5 ends a text at NUL


def _require_known(lm: "LanguageModel", fact: Fact, ids: tuple[int, ...]) -> None:
    beyond = [token for token in ids if token >= lm.n_embeddings]
    if beyond:
        raise KtraceError(
            f"known_id={fact.known_id}: token {beyond[0]} ({decoded(lm, beyond[:1])!r}) is beyond "
            f"the model's {lm.n_embeddings} embeddings: tokenizer and weights in model.path do not "
            "belong together"
        )
