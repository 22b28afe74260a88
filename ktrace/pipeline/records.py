"""What a part of the clean store holds of one fact."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ktrace.facts import Fact, role_of_positions

if TYPE_CHECKING:
    from ktrace.lm.model import LanguageModel
    from ktrace.tracing.encode import EncodedFact


def clean_record(
    lm: "LanguageModel", index: int, fact: Fact, encoded: "EncodedFact"
) -> dict[str, Any]:
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

    from ktrace.terms import SITES
    from ktrace.tracing.encode import clean_fact, decoded

    prompt, answer = encoded.prompt, encoded.answer_ids
    result, left_out = clean_fact(lm, fact, encoded)
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
