"""A model that is in memory already and belongs to someone else: what it must be, and its proof."""

from pathlib import PurePath
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ktrace.errors import KtraceError
from ktrace.lm.devices import first_line
from ktrace.lm.load import proven_model
from ktrace.lm.made_up import PROMPT, ids_of, rounding_in, size_of
from ktrace.lm.model import LanguageModel, Untyped
from ktrace.lm.paths import ModulePaths
from ktrace.lm.tokens import Tokenizer, require_offsets
from ktrace.lm.use import in_use

# Where others have the model: compiled ones, data parallel ones, pipelines and trainers, trl's.
_AROUND = ("_orig_mod", "module", "model", "pretrained_model")
_CALL = "give load_model(model, tokenizer), as AutoModelForCausalLM and AutoTokenizer load them"


def given_model(model: object, tokenizer: Tokenizer, paths: ModulePaths | None) -> LanguageModel:
    """Prove the sites of a model in memory, and leave it as it was.

    Adapters of peft that change what linear layers and embeddings give are traced where they are,
    in the model that they were put into; what this gives is compared with the whole.

    Args:
        model: of transformers, or of peft around one.
        tokenizer: of the model.
        paths: where its sites are; None for those of its architecture.

    Raises:
        KtraceError: it is no causal language model that can be traced, or no tokenizer of it.
    """
    _require_tokenizer(model, tokenizer)
    base = _base_of(model)
    _require_whole(base)
    try:
        with in_use(base):
            lm = proven_model(base, tokenizer, paths)
            if base is not model:
                _require_all_of(cast(nn.Module, model), lm)
    except KtraceError:
        raise
    except Exception as error:  # whatever its own code, hooks or placement come to
        raise KtraceError(
            f"model={_kind(model)} fails on a made-up prompt: {first_line(error)}"
        ) from error
    return lm


def name_of(model: object) -> str:
    """What tables call it: the last part of what it was loaded from, else its class."""
    origin = getattr(getattr(model, "config", None), "_name_or_path", None)
    return PurePath(str(origin or "")).name or type(model).__name__


def _require_tokenizer(model: object, tokenizer: Tokenizer) -> None:
    """Refuse what is no tokenizer, or stands in the model's place."""
    if isinstance(model, PreTrainedTokenizerBase):
        raise KtraceError(f"model={_kind(model)} is a tokenizer, which comes second: {_CALL}")
    if tokenizer is None:
        raise KtraceError(
            f"model={_kind(model)} is in memory and has no tokenizer with it: {_CALL}"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        within = getattr(tokenizer, "tokenizer", None)
        way = "give its .tokenizer" if isinstance(within, PreTrainedTokenizerBase) else _CALL
        raise KtraceError(f"tokenizer={_kind(tokenizer)} is no tokenizer of transformers: {way}")
    require_offsets(tokenizer, "tokenizer")


def _base_of(model: object) -> PreTrainedModel:
    """The model of transformers that is meant: itself, or what peft has put adapters into."""
    if isinstance(model, PreTrainedModel):
        return model
    if _is_adapted(model):
        adapted: Untyped = model
        _require_in_place(adapted)
        found = adapted.get_base_model()
        if isinstance(found, PreTrainedModel):
            return found
    within = _way_within(model)
    way = f"give its {within}" if within else _CALL
    raise KtraceError(f"model={_kind(model)} is no model of transformers: {way}")


def _is_adapted(model: object) -> bool:
    """Whether it is peft's model itself: what is around one hands its attributes on."""
    adapted = isinstance(model, nn.Module) and hasattr(model, "peft_config")
    return adapted and hasattr(type(model), "get_base_model")  # not of a model within


def _way_within(model: object) -> str:
    """Attributes that lead to a model that can be given; none where there is none.

    What hands attributes on (compiled models, tuners of peft) seems to have those of the model
    within as well, such as `.model`, which has no head: what is around a model comes first.
    """
    own = model._modules if isinstance(model, nn.Module) else getattr(model, "__dict__", {})
    for name in _AROUND:
        found = getattr(model, name, None)
        if _is_adapted(found) or (isinstance(found, PreTrainedModel) and _has_head(found)):
            return f".{name}"
        further = _way_within(found) if isinstance(found, nn.Module) and name in own else ""
        if further:
            return f".{name}{further}"
    return ""


def _has_head(model: PreTrainedModel) -> bool:
    return cast(Untyped, model).get_output_embeddings() is not None


def _require_in_place(adapted: Untyped) -> None:
    """Refuse adapters that are no part of the layers that they adapt."""
    for name in adapted.active_adapters:
        config = adapted.peft_config[name]
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if getattr(config, "is_prompt_learning", False):
            raise KtraceError(
                f"model={_kind(adapted)}: its adapter {name!r} ({kind}) puts states of its own "
                "beside the prompt's: ktrace traces adapters that change what layers give (LoRA)"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise KtraceError(
                f"model={_kind(adapted)}: its adapter {name!r} ({kind}) begins at tokens in the "
                "middle of a prompt (alora_invocation_tokens): give model.merge_and_unload() of a "
                "plain one"
            )


@torch.inference_mode()
def _require_all_of(adapted: nn.Module, lm: LanguageModel) -> None:
    """Whatever is around the model changes nothing that it says."""
    ids = ids_of(lm.model, lm.paths, PROMPT)
    inner, whole = (model(input_ids=ids).logits.float() for model in (lm.model, adapted))
    left = size_of(inner - whole) if inner.shape == whole.shape else float("inf")
    if not left <= rounding_in(lm.model, inner):
        raise KtraceError(
            f"model={_kind(adapted)}: the model within it does not say what it says with its "
            "adapters around: give model.merge_and_unload()"
        )


def _require_whole(model: PreTrainedModel) -> None:
    """Refuse a model without a head, or with modules that are no longer run.

    Whether it is one that answers by what it reads is for its proof to say.
    """
    kind = _kind(model)
    if not _has_head(model):
        raise KtraceError(
            f"model={kind} has no head that predicts tokens: load it with AutoModelForCausalLM"
        )
    for module in model.modules():
        forward = vars(module).get("forward")
        within = hasattr(forward, "_torchdynamo_orig_callable")
        if within or getattr(module, "_compiled_call_impl", None):
            raise KtraceError(
                f"model={kind} is compiled (model.compile(), or its forward is), where hooks are "
                "not seen: give it as it was loaded"
            )


def _kind(model: object) -> str:
    return f"{model!r:.60}" if isinstance(model, str) else type(model).__name__
