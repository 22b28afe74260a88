"""`ktrace.trace`: one prompt, every layer and position."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypedDict

from ktrace.api.asked import arguments_named, config_of, one_mediator, required_model
from ktrace.api.traced import Trace
from ktrace.config import NoiseKind, RunConfig
from ktrace.config.identity import noise_key
from ktrace.errors import KtraceError
from ktrace.facts import role_of_positions
from ktrace.facts.dataset import facts_of, noise_facts_of, require_fit
from ktrace.facts.text import trimmed
from ktrace.lm.model import LanguageModel
from ktrace.lm.tokens import decoded
from ktrace.lm.use import in_use
from ktrace.terms import METRICS, SOURCE_GROUPS
from ktrace.tracing.answers import baselines, restorations
from ktrace.tracing.candidates import required_candidate
from ktrace.tracing.checks import (
    require_mediators,
    require_numbers,
    require_places,
    require_scores,
    say_wide_windows,
)
from ktrace.tracing.engine import Case, Scores, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.measure import measured_noise
from ktrace.tracing.mediators import Mediator, make_mediators
from ktrace.tracing.pairs import encoded_for


def trace(
    model: LanguageModel,
    prompt: str,
    subject: str | None = None,
    mediator: str = "hidden",
    answer: str | Sequence[str] | None = None,
    *,
    window: int | None = None,
    direction: str = "denoise",
    positions: str | Sequence[str] | None = None,
    query: str = "last",
    whole_answer: bool = False,
    subject_start: int | None = None,
    separator: str = "auto",
    chat: bool = False,
    bos: str = "keep",
    engine: str = "suffix",
    noise_facts: str | None = None,
    corrupted_prompt: str | None = None,
    wrong_answer: str | None = None,
    known_id: int = 0,
    noise: str | None = None,
    **noise_keys: object,
) -> Trace:
    """Trace one prompt: every layer and position, one mediator.

    The noise is measured as with `dataset=prompt`: a single subject has too few tokens, so sigma
    (and mean, covariance, partners) are those of the subjects of the embedded facts, as this
    model's tokenizer cuts them. `std` gives an absolute level instead.

    Args:
        model: what `ktrace.load_model` gave.
        prompt: ends where the answer begins.
        subject: the part of the prompt to corrupt; with a `corrupted_prompt` it is optional, and
            what differs takes its roles.
        mediator: `hidden`, `hidden_attn_severed`, `hidden_mlp_severed`, `mlp`, `attn`, `head` or
            `knockout`.
        answer: must be what the model predicts, as only candidates are traced; None takes the
            prediction. Of a list of right answers one must be it; their probabilities are added.
        window: layers restored together by `mlp` and `attn`, or cut together by `knockout`; None
            for the model's own, of `knockout` 9 at the most.
        direction: `denoise` puts clean states into the corrupted run; `noise`, for `hidden`, `mlp`,
            `attn` and `head`, corrupted ones into the clean run.
        positions: `all`, or roles such as `["last_subject", "last"]`; None for the mediator's own:
            these two for `head`, all for others.
        query: role of the position whose edges `knockout` cuts.
        whole_answer: whether all tokens of the answer are scored (`dataset.answer=full`), not the
            first alone.
        subject_start: first character of the subject, where the prompt holds it more than once.
        separator: what stands between prompt and answer: `auto`, `space` or `none`.
        chat: whether the prompt is the user's turn in the tokenizer's chat template.
        bos: `strip` leaves one of two BOS tokens: that of a prompt which has its own, and the
            tokenizer's.
        engine: `suffix` or `reference`.
        noise_facts: a file of facts to measure the noise on, in place of the embedded ones.
        corrupted_prompt: what the corrupted run reads, of as many tokens: no noise (`kind="pair"`).
        wrong_answer: what `logit_difference` compares with then (`dataset.foil`).
        known_id: the prompt's number in frames, so that frames of several can be put together.
        noise: its kind, as the choice `noise=` of the config: `gaussian`, or `pair` with a
            `corrupted_prompt`, by default. `kind`, the config's own key, is the same.
        **noise_keys: other keys `noise.*` of the config: `multiple` or `std`, `samples`, `seed`,
            `replace`, `degrees`, `foil`.

    Returns:
        Scores, tokens and roles.

    Raises:
        KtraceError: an argument is not allowed, the subject is not once in the prompt, the answer
            is not the prediction, or the noise cannot corrupt this subject.

    Examples:
        >>> import ktrace
        >>> model = ktrace.load_model("tiny")
        >>> prompt = "The World Wide Web was invented by"
        >>> trace = ktrace.trace(model, prompt, "The World Wide Web", "mlp", noise="mean")
        >>> trace.answer, trace.mediator, trace.p_restored.shape  # samples, layers, positions
        (' Tim', 'mlp-w3', (1, 6, 8))
    """
    lm = required_model(model)
    _require_texts(prompt, subject)
    asked: dict[str, object] = {"prompt": prompt, "subject": subject}
    asked |= {} if answer is None else _answers(answer)
    asked |= {"subject_start": subject_start, "corrupted_prompt": corrupted_prompt}
    asked["foil"] = wrong_answer
    options = {"window": window, "direction": direction, "positions": positions, "query": query}
    options |= {"whole_answer": whole_answer, "separator": separator, "chat": chat, "bos": bos}
    options |= {"engine": engine, "noise_facts": noise_facts}
    chosen = ["dataset=prompt", one_mediator(mediator)]
    config = config_of(trace, lm, chosen, options, asked, {"noise": noise, **noise_keys})
    with in_use(lm.model):
        return replace(_traced(lm, config), known_id=_whole("known_id", known_id))


def _require_texts(prompt: object, subject: object) -> None:
    for name, value in (("prompt", prompt), ("subject", subject)):
        if not isinstance(value, str) and (name == "prompt" or value is not None):
            raise KtraceError(f"{name}={value!r:.60} is no text")
    if isinstance(subject, str) and str(prompt) != subject and str(prompt) in subject:
        raise KtraceError(
            f"subject={subject!r:.60} holds prompt={prompt!r:.60}: the prompt comes first, then "
            "its subject"
        )


def _whole(name: str, value: object) -> int:
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except TypeError as error:
        raise KtraceError(f"{name}={value!r:.60} is no whole number") from error


def _answers(answer: str | Sequence[str]) -> dict[str, object]:
    """Right answers by key of the config: None alone leaves them out."""
    given = [answer] if isinstance(answer, str) or not isinstance(answer, Iterable) else [*answer]
    if not given or not all(isinstance(text, str) and trimmed(text) != (0, 0) for text in given):
        raise KtraceError(
            f"answer={answer!r:.60} holds no text, or an empty one: give a right answer or a list "
            "of them, or None for what the model predicts"
        )
    first, *also = given
    return {"attribute": first, "also": also} if also else {"attribute": first}


def _traced(lm: LanguageModel, config: RunConfig) -> Trace:
    mediator, *others = make_mediators(config.mediator)
    if others:
        raise KtraceError(
            f"window={config.mediator.window} and direction={config.mediator.direction} ask for "
            f"{1 + len(others)} mediators: ktrace.trace takes one, ktrace.trace_many several"
        )
    require_mediators(lm, [mediator])
    say_wide_windows(lm, [mediator], key="window")
    with arguments_named("dataset", "prompt", "subject", "subject_start", "corrupted_prompt"):
        facts = facts_of(config.dataset)
    require_fit(facts, config.noise, config.metric)
    fact, is_pair = facts.facts[0], config.noise.kind is NoiseKind.pair
    [encoded] = encoded_for(config.noise.kind, lm, facts.facts, config.dataset)
    case = required_candidate(lm, fact, encoded)
    noise_facts = noise_facts_of(config.dataset, config.noise.kind)
    measured = measured_noise(lm, config.noise, facts, [encoded], config.dataset, noise_facts)
    for reason in measured.unusable.values():
        what = f"{config.noise.kind.value} cannot corrupt {fact.subject or fact.prompt!r}"
        raise KtraceError(f"noise.kind={what}: {reason}")
    require_places([(case.span, len(case.input_ids))], [mediator])
    longest = case.shape._replace(n_answer=encoded.n_answer).and_longer()
    engine = make_engine(config.engine, lm, measured.noise, Use([mediator], [longest]))
    [(_, baseline)] = baselines(engine, [case])
    require_numbers(lm, fact, "corrupted run", baseline.corrupted[METRICS[0]])
    # As the stages do: what a restoration does not change keeps the very scores of the baseline.
    [(_, restored)] = restorations(engine, [replace(case, baseline=baseline)], [mediator])
    require_scores(lm, fact, mediator, restored[mediator.key])
    return Trace(
        model=lm.name,
        prompt=fact.prompt,
        subject=fact.subject,
        answer=decoded(lm.tokenizer, case.answer_ids),
        answer_ids=case.answer_ids,
        foils=tuple(decoded(lm.tokenizer, ids) for ids in baseline.foil_ids),
        tokens=encoded.prompt.tokens,
        input_ids=case.input_ids,
        span=encoded.span,
        roles=role_of_positions(encoded.span, len(case.input_ids)),
        mediator=mediator.key,
        noise=noise_key(config.noise),
        sigma=measured.sigma,
        sigma_facts=measured.n_facts,
        noise_level=measured.level,
        clean=baseline.clean,
        corrupted=baseline.corrupted,
        **_by_place(mediator, case, restored[mediator.key]),
        also=tuple(decoded(lm.tokenizer, other) for other in case.also),
        corrupted_prompt=fact.corrupted_prompt if is_pair else "",
    )


class _ByPlace(TypedDict):
    """Fields of a `Trace`."""

    positions: tuple[int, ...]
    restored: Scores
    source_groups: tuple[str, ...]
    of_groups: Scores


def _by_place(mediator: Mediator, case: Case, scores: Scores) -> _ByPlace:
    """Positions, and groups of sources, which are behind them."""
    places = mediator.places(case.span, len(case.input_ids))
    n_positions = sum(place >= 0 for place in places)
    groups = tuple(SOURCE_GROUPS[-1 - place] for place in places[n_positions:])
    return {
        "positions": tuple(places[:n_positions]),
        "restored": {metric: values[..., :n_positions] for metric, values in scores.items()},
        "source_groups": groups,
        "of_groups": {m: values[..., n_positions:] for m, values in scores.items() if groups},
    }
