"""`ktrace.load_model` of a model with adapters of peft: the numbers of the adapted model."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import ktrace
from ktrace.lm.model import LanguageModel
from tests.support.known_facts import PROMPTS

peft = pytest.importorskip("peft", reason="adapters are of peft (the extra `dev`)")

PROMPT, SUBJECT = PROMPTS[0][0].format(PROMPTS[0][1]), PROMPTS[0][1]
IDS = torch.tensor([[5, 4, 3, 2, 1]])


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


def trained(model: nn.Module) -> nn.Module:
    """With adapters that have learnt something: fresh ones change nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_A" not in name and "original" not in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def adapted(folder: Path, config: Any) -> Any:
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(0)
    return trained(peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config))


def scores(lm: LanguageModel, **options: Any) -> Any:
    trace = ktrace.trace(lm, PROMPT, SUBJECT, "mlp", window=2, std=1.0, samples=2, **options)
    return trace.p_restored


ADAPTERS: dict[str, Callable[[], Any]] = {
    "attention and MLP": lambda: peft.LoraConfig(
        r=4, lora_dropout=0.5, target_modules=["q_proj", "o_proj", "down_proj"]
    ),
    "embedding and head": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "saved modules": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    ),
    "some tokens": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4, 5, 60, 61, 62]
    ),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_numbers_are_those_of_the_merged_model(
    kind: str, model_folder: Path, tokenizer: Any, no_proof: None
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    before = scores(ktrace.load_model(plain, tokenizer), noise="gaussian")
    model = adapted(model_folder, ADAPTERS[kind]()).train()
    lm = ktrace.load_model(model, tokenizer)
    modes = [module.training for module in model.modules()]
    learnt = [weight.requires_grad for weight in model.parameters()]
    found = scores(lm)
    assert all(modes)
    assert modes == [module.training for module in model.modules()]
    assert learnt == [weight.requires_grad for weight in model.parameters()]
    merged = model.eval().merge_and_unload()
    assert type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    np.testing.assert_allclose(
        found, scores(ktrace.load_model(merged, tokenizer)), rtol=0, atol=2e-5
    )
    assert np.abs(found - before).max() > 1e-3


def test_the_adapter_that_is_active_counts(
    model_folder: Path, tokenizer: Any, no_proof: None
) -> None:
    model = adapted(model_folder, peft.LoraConfig(r=4, target_modules=["down_proj"]))
    lm = ktrace.load_model(model, tokenizer)
    assert (lm.name, lm.model) == ("random", model.get_base_model())
    assert "LlamaForCausalLM with adapter 'default', 3 layers" in repr(lm)
    with model.disable_adapter():
        assert "adapter" not in repr(lm)
    first = scores(lm)
    model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["q_proj"]))
    model.set_adapter("other")
    trained(model)
    second = scores(lm)
    assert np.abs(first - second).max() > 1e-3
    model.set_adapter("default")
    np.testing.assert_array_equal(scores(lm), first)
    with model.disable_adapter():
        plain = scores(lm)
    untouched = AutoModelForCausalLM.from_pretrained(model_folder)
    np.testing.assert_allclose(
        plain, scores(ktrace.load_model(untouched, tokenizer)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("first", ["adapters", "checkpoints"])
def test_a_model_that_is_being_fine_tuned(
    first: str, model_folder: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture, no_proof: None
) -> None:
    """With gradient checkpointing the embedding's output is made to need gradients, by a hook."""
    config = ADAPTERS["attention and MLP"]
    expected = scores(ktrace.load_model(adapted(model_folder, config()), tokenizer))
    if first == "adapters":
        model = adapted(model_folder, config())
        model.gradient_checkpointing_enable()
    else:
        plain = AutoModelForCausalLM.from_pretrained(model_folder)
        plain.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model = trained(peft.get_peft_model(plain, config()))
    lm = ktrace.load_model(model.train(), tokenizer)
    np.testing.assert_array_equal(scores(lm), expected)
    assert "hooks" not in caplog.text


def test_an_adapter_that_works_on_whole_prompts_is_traced_by_the_reference_engine(
    model_folder: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """DoRA calls its own layers on another matrix than the states."""
    config = peft.LoraConfig(r=4, use_dora=True, target_modules=["v_proj", "up_proj"])
    model = adapted(model_folder, config)
    with caplog.at_level("WARNING"):
        found = scores(ktrace.load_model(model, tokenizer))
    assert "going on with engine=reference" in caplog.text
    merged = ktrace.load_model(model.merge_and_unload(), tokenizer)
    np.testing.assert_allclose(found, scores(merged), rtol=0, atol=2e-5)


def test_both_engines_agree_with_adapters(model_folder: Path, tokenizer: Any) -> None:
    lm = ktrace.load_model(adapted(model_folder, ADAPTERS["attention and MLP"]()), tokenizer)
    fast, plain = (scores(lm, engine=engine) for engine in ("suffix", "reference"))
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: peft.PromptTuningConfig(num_virtual_tokens=2),
            r"its adapter 'default' \(PROMPT_TUNING\) puts states of its own beside the prompt's",
        ),
        (
            lambda: peft.PrefixTuningConfig(num_virtual_tokens=2),
            r"its adapter 'default' \(PREFIX_TUNING\) puts states of its own beside the prompt's",
        ),
        (
            lambda: peft.LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[3]),
            r"its adapter 'default' \(LORA\) begins at tokens in the middle of a prompt",
        ),
    ],
)
def test_adapters_that_are_no_part_of_a_layer(
    config: Callable[[], Any], message: str, model_folder: Path, tokenizer: Any
) -> None:
    model = adapted(model_folder, config())
    with pytest.raises(ktrace.KtraceError, match=f"^model=PeftModelForCausalLM: {message}"):
        ktrace.load_model(model, tokenizer)


def test_whatever_else_is_around_the_model_is_found_out(
    model_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(model_folder, ADAPTERS["attention and MLP"]())
    inner = type(model).forward

    def louder(self: Any, *given: Any, **named: Any) -> Any:
        said = inner(self, *given, **named)
        said.logits = 1.01 * said.logits
        return said

    monkeypatch.setattr(type(model), "forward", louder)
    with pytest.raises(ktrace.KtraceError, match="the model within it does not say what it says"):
        ktrace.load_model(model, tokenizer)


@pytest.mark.parametrize(
    ("around", "way"),
    [
        (lambda model, config: peft.get_peft_model(model, config).base_model, ".model"),
        (lambda model, config: peft.get_peft_model(model, config, mixed=True), ".model"),
        (lambda model, config: torch.compile(peft.get_peft_model(model, config)), "._orig_mod"),
    ],
)
def test_what_is_around_an_adapted_model_says_where_it_is(
    around: Callable[[Any, Any], Any], way: str, model_folder: Path, tokenizer: Any, no_proof: None
) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    given = around(AutoModelForCausalLM.from_pretrained(model_folder), config)
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.load_model(given, tokenizer)
    kind = type(given).__name__
    assert str(raised.value) == f"model={kind} is no model of transformers: give its {way}"
    within = operator.attrgetter(way.lstrip("."))(given)
    assert ktrace.load_model(within, tokenizer).n_layers == 3
