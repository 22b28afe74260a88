"""Whether a fact is a candidate: its clean run, and what the model predicts there."""

from dataclasses import replace

from ktrace.facts import Fact
from ktrace.lm.model import LanguageModel
from ktrace.tracing.answers import branches
from ktrace.tracing.checks import require_numbers
from ktrace.tracing.clean import CleanRun, clean_run
from ktrace.tracing.encode import EncodedFact, too_long


def clean_fact(lm: LanguageModel, fact: Fact, encoded: EncodedFact) -> tuple[CleanRun | None, str]:
    """The clean run, and why the fact is no candidate: empty where it is one.

    A prompt that is longer than the model reads is not run: it has no clean run.

    Raises:
        KtraceError: the model gives no numbers.
    """
    if too_long(lm, encoded.n_read):
        return None, f"the prompt is longer than the model's {lm.max_positions} positions"
    run = _clean_run(lm, encoded)
    require_numbers(lm, fact, "clean run", run.predicted_probability)
    if encoded.problem:
        return run, encoded.problem
    if run.predicted_ids not in encoded.answers:
        return run, "another answer is predicted"
    return run, ""


def _clean_run(lm: LanguageModel, encoded: EncodedFact) -> CleanRun:
    """That of the answer which is predicted, else of the first; the probability is of all."""
    ids = encoded.prompt.input_ids
    if not encoded.answers:
        return clean_run(lm, ids)
    runs = [
        clean_run(lm, ids, together[0], tuple(answer[-1] for answer in together))
        for together in branches(encoded.answers)
    ]
    said = [run for run in runs if run.predicted_ids in encoded.answers]
    return replace((said or runs)[0], probability=sum(run.probability for run in runs))
