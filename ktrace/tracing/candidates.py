"""Whether a fact is a candidate: its clean run, and what the model predicts there."""

from dataclasses import replace

from ktrace.errors import KtraceError
from ktrace.facts import Fact
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import decoded
from ktrace.tracing.answers import branches
from ktrace.tracing.checks import require_numbers
from ktrace.tracing.clean import CleanRun, clean_run
from ktrace.tracing.encode import too_long
from ktrace.tracing.encoded import EncodedFact
from ktrace.tracing.engine import Case
from ktrace.tracing.states import Kept


def clean_fact(
    lm: LanguageModel, fact: Fact, encoded: EncodedFact, kept: Kept | None = None
) -> tuple[CleanRun | None, str]:
    """The clean run, and why the fact is no candidate: empty where it is one.

    A prompt that is longer than the model reads is not run: it has no clean run.

    Args:
        lm: the model.
        fact: which.
        encoded: the same in tokens.
        kept: which states, if any.

    Raises:
        KtraceError: the model gives no numbers.
    """
    if too_long(lm, encoded.n_read):
        return None, f"the prompt is longer than the model's {lm.max_positions} positions"
    run = _clean_run(lm, encoded, kept)
    require_numbers(lm, fact, "clean run", run.predicted_probability)
    if encoded.problem:
        return run, encoded.problem
    if run.predicted_ids not in encoded.answers:
        return run, "another answer is predicted"
    return run, ""


def _clean_run(lm: LanguageModel, encoded: EncodedFact, kept: Kept | None) -> CleanRun:
    """That of the answer which is predicted, else of the first; the probability is of all."""
    ids = encoded.prompt.input_ids
    if not encoded.answers:
        return clean_run(lm, ids, kept=kept)
    runs = [
        clean_run(lm, ids, together[0], tuple(answer[-1] for answer in together), kept)
        for together in branches(encoded.answers)
    ]
    said = [run for run in runs if run.predicted_ids in encoded.answers]
    return replace((said or runs)[0], probability=sum(run.probability for run in runs))


def required_candidate(lm: LanguageModel, fact: Fact, encoded: EncodedFact) -> Case:
    """What is traced of one fact, where the model predicts a right answer.

    Raises:
        KtraceError: why it is no candidate.
    """
    run, left_out = clean_fact(lm, fact, encoded)
    if run is None:
        raise KtraceError(f"prompt={fact.prompt!r:.60}: {left_out}")
    if left_out and not fact.answers:
        raise KtraceError(f"prompt={fact.prompt!r:.60}: {left_out}: give an answer")
    if left_out:
        said = decoded(lm.tokenizer, run.predicted_ids)
        raise KtraceError(
            f"answer={' | '.join(fact.answers)!r}: {left_out} ({said!r}, "
            f"p = {run.predicted_probability:.3f}), and only candidates are traced; leave answer "
            "out to take the prediction"
        )
    return encoded.case(0, run.predicted_ids)
