"""When the suffix engine is proven: what is known of a loaded model is not proven again."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

from torch import nn

from ktrace.config import Prove
from ktrace.lm.model import Config, LanguageModel
from ktrace.tracing.engine import Use
from ktrace.tracing.mediators import Mediator
from ktrace.tracing.suffix.expected import longest_shape
from ktrace.tracing.suffix.limits import Limits
from ktrace.tracing.suffix.proof import proven
from ktrace.tracing.suffix.verdicts import Judged, Verdict, VerdictFiles

_Known = dict[Judged, Verdict]
_VERDICTS: WeakKeyDictionary[nn.Module, dict[Hashable, _Known]] = WeakKeyDictionary()


def judge(
    lm: LanguageModel,
    use: Use,
    limits: Limits,
    prove: Prove = Prove.auto,
    files: VerdictFiles | None = None,
) -> Verdict:
    """Whether the suffix engine gives the reference engine's numbers, as known or as found now.

    A verdict on some mediators serves a run of these and others: only the others are judged then.

    Args:
        lm: the model.
        use: what the engine is made for.
        limits: of the engine.
        prove: `always` judges anew; `never` takes for granted what a proof would have to find.
        files: verdicts of other processes on this model; None where it is not known which it is.

    Raises:
        NoMemoryLeftError: nothing is proven either way.
    """
    if prove is Prove.never:
        return Verdict(packed=lm.d_embedding >= limits.pack_width)
    asked = Judged(frozenset(use.mediators), longest_shape(lm, use), limits)
    known = _VERDICTS.setdefault(lm.model, {}).setdefault(_nature(lm), {})
    files = files if files is not None and files.as_loaded == state_of(lm) else None

    def judged_now(mediators: frozenset[Mediator]) -> Verdict:
        judged = replace(asked, mediators=mediators)
        in_order = [mediator for mediator in use.mediators if mediator in mediators]
        known[judged] = proven(lm, replace(use, mediators=in_order), limits)
        if files is not None:
            files.keep(judged, known[judged])
        return known[judged]

    if prove is Prove.always:
        return judged_now(asked.mediators)
    if files is not None and _lacking(known, asked):
        known |= {judged: v for judged, v in files.known(asked) if judged not in known}
    if asked not in known and (lacking := _lacking(known, asked)):
        verdict = judged_now(lacking)
        if verdict.problem is not None:
            known[asked] = verdict  # what fails for some fails for more
        elif _lacking(known, asked):
            judged_now(asked.mediators)  # as one: some take packs, and others none
    return known[asked] if asked in known else _together(known, asked)[1]


def _lacking(known: Mapping[Judged, Verdict], asked: Judged) -> frozenset[Mediator]:
    """Mediators that no verdict serves."""
    return asked.mediators - _together(known, asked)[0]


def _together(
    known: Mapping[Judged, Verdict], asked: Judged
) -> tuple[frozenset[Mediator], Verdict]:
    """The most of the mediators asked for that verdicts serve as one, and what these say.

    What fails for more may hold for less, so that only good ones serve. Where some were proven in
    packs and others without, none was proven in the way of the others.
    """
    found = []
    for packed in (True, False):
        some = [
            (judged, verdict)
            for judged, verdict in known.items()
            if verdict.problem is None and verdict.packed is packed and judged.reaches(asked)
        ]
        served = frozenset[Mediator]().union(*(judged.mediators for judged, _ in some))
        against = next(
            (verdict.against_packs for _, verdict in some if verdict.against_packs), None
        )
        found.append((served & asked.mediators, Verdict(None, packed, against)))
    return max(found, key=lambda one: len(one[0]))


def _nature(lm: LanguageModel) -> Hashable:
    """What a model computes by, as far as it can be seen: somebody may change it in memory."""
    config: Config = lm.model.config
    modules = tuple(
        (
            type(module),
            type(module).forward,
            module.__dict__.get("forward"),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for module in lm.model.modules()
    )
    attention = getattr(config, "_attn_implementation", None)
    return lm.paths, lm.model.dtype, str(lm.device), attention, modules


def state_of(lm: LanguageModel) -> Hashable:
    """What a model computes by and with: another one after any change of it in memory."""
    weights = tuple(
        (weight.data_ptr(), -1 if weight.is_inference() else weight._version)
        for weight in lm.model.parameters()
    )
    return _nature(lm), weights
