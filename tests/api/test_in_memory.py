"""`ktrace.load_model` of a model in memory: its numbers, and that it is left as it was."""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

import ktrace
from ktrace.lm import use
from ktrace.lm.model import LanguageModel
from ktrace.tracing.suffix import judge
from tests.support.families import tiny_model
from tests.support.known_facts import PROMPTS
from tests.support.models import sharpened
from tests.support.places import ROOT

PROMPT, SUBJECT = PROMPTS[0][0].format(PROMPTS[0][1]), PROMPTS[0][1]
IDS = torch.tensor([[5, 4, 3, 2, 1]])


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def in_memory(model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_folder)


def dropping(tokenizer: Any) -> Any:
    """A model that says something else at every call, as long as it is being trained."""
    torch.manual_seed(0)
    drops = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": len(tokenizer)}
    model = GPT2LMHeadModel(GPT2Config(**shape, **ids, **drops))  # type: ignore[arg-type]
    return sharpened(model).train()


def looks(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that somebody could have changed, and what it says."""
    config: Any = model.config
    torch.manual_seed(3)
    said: Any = model(input_ids=IDS).logits.detach().clone()
    return {
        "modes": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "forwards": [module.__dict__.get("forward") for module in model.modules()],
        "hooks": [list(module._forward_hooks.values()) for module in model.modules()],
        "pre_hooks": [list(module._forward_pre_hooks.values()) for module in model.modules()],
        "learnt": [weight.requires_grad for weight in model.parameters()],
        "weights": [
            (id(weight), weight.sum().item()) for weight in model.parameters() if not weight.is_meta
        ],
        "buffers": [id(buffer) for buffer in model.buffers()],
        "config": config.to_dict(),
        "kernels": (config._attn_implementation, config._experts_implementation),
        "said": said.numpy().tobytes(),
    }


def traced(model: LanguageModel, mediator: str = "mlp", **options: Any) -> pd.DataFrame:
    return ktrace.trace(model, PROMPT, SUBJECT, mediator, window=2, samples=2, **options).to_frame()


def test_its_numbers_are_those_of_the_files(
    model_folder: Path, in_memory: Any, tokenizer: Any
) -> None:
    given = ktrace.load_model(in_memory, tokenizer)
    assert given.model is in_memory
    assert (given.name, given.window) == ("random", 1), "about a fifth of three layers"
    for mediator in ("hidden_mlp_severed", "knockout"):
        from_files = traced(ktrace.load_model(model_folder), mediator)
        pd.testing.assert_frame_equal(traced(given, mediator), from_files, check_exact=True)


def test_a_model_in_training_is_traced_without_dropout_and_left_as_it_was(
    tokenizer: Any, no_proof: None
) -> None:
    model = dropping(tokenizer)
    model.transformer.h[1].eval()  # one that somebody froze
    for weight in model.transformer.h[0].parameters():
        weight.requires_grad_(False)
    calls: list[int] = []
    model.transformer.h[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    before = looks(model)
    torch.manual_seed(4)
    assert looks(model)["said"] == before["said"]
    assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)

    lm = ktrace.load_model(model, tokenizer)
    assert looks(model) == before
    frames = [traced(lm, std=1.0) for _ in range(2)]
    assert looks(model) == before
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    model.eval()
    pd.testing.assert_frame_equal(traced(lm, std=1.0), frames[0], check_exact=True)
    # And it can still learn.
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert model.transformer.h[1].mlp.c_fc.weight.grad.abs().max() > 0


def test_many_facts_leave_it_as_it_was(tokenizer: Any, no_proof: None) -> None:
    model = dropping(tokenizer)
    before = looks(model)
    lm = ktrace.load_model(model, tokenizer)
    fact = {"prompt": PROMPT, "subject": SUBJECT, "attribute": None}
    frames = [ktrace.trace_many(lm, [fact], noise="mean") for _ in range(2)]
    assert looks(model) == before
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_it_is_traced_as_it_is_now(in_memory: Any, tokenizer: Any, no_proof: None) -> None:
    """Nothing of it is copied: what it has learnt since it was given counts."""
    lm = ktrace.load_model(in_memory, tokenizer)
    first = traced(lm)
    with torch.no_grad():
        in_memory.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    assert not np.allclose(traced(lm)["restored"], first["restored"], atol=1e-3)


def test_a_run_that_fails_leaves_it_as_it_was(in_memory: Any, tokenizer: Any) -> None:
    before = looks(in_memory.train())
    lm = ktrace.load_model(in_memory, tokenizer)
    with pytest.raises(ktrace.KtraceError, match="another answer is predicted"):
        ktrace.trace(lm, PROMPT, SUBJECT, answer="Nowhere")
    with pytest.raises(ktrace.KtraceError, match=r"module path 'model\.tokens'"):
        ktrace.load_model(in_memory, tokenizer, modules={"embedding": "model.tokens", "block": "b"})
    assert looks(in_memory) == before


def test_what_runs_leave_in_its_modules_is_taken_back(
    in_memory: Any, tokenizer: Any, no_proof: None
) -> None:
    """Rotary embeddings keep tables that grow with the longest prompt, for one."""
    rotary = in_memory.model.rotary_emb
    table = rotary.inv_freq

    def grow(module: Any, *_: object) -> None:
        module.register_buffer("inv_freq", module.inv_freq.clone(), persistent=False)
        module.longest = 7

    rotary.register_forward_pre_hook(grow)
    traced(ktrace.load_model(in_memory, tokenizer))
    assert rotary.inv_freq is table
    assert not hasattr(rotary, "longest")
    in_memory(input_ids=IDS)
    assert rotary.longest == 7


def lengths(output: Any) -> dict[str, Any]:
    """What a forward pass gives by name, or by number, and of how many layers."""
    named = output.items() if hasattr(output, "items") else enumerate(output)
    return {
        str(name): len(given) if isinstance(given, tuple) else given.numpy().tobytes()
        for name, given in named
        if isinstance(given, tuple | torch.Tensor)
    }


@pytest.mark.parametrize(
    ("architecture", "asked", "value", "used"),
    [
        ("MixtralForCausalLM", "output_hidden_states", True, False),
        ("MixtralForCausalLM", "output_hidden_states", [1], True),
        ("MixtralForCausalLM", "output_attentions", True, False),
        ("MixtralForCausalLM", "output_router_logits", True, True),
        ("BloomForCausalLM", "return_dict", False, False),  # with which others fail by themselves
    ],
)
def test_what_a_config_asks_for_is_given_as_before(
    architecture: str,
    asked: str,
    value: object,
    used: bool,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
    no_proof: None,
) -> None:
    """Also where a model notes its outputs with hooks, which are put on it at its first pass."""
    model, untouched = (
        tiny_model(architecture, vocab_size=len(tokenizer), attention="eager") for _ in range(2)
    )
    plain = traced(ktrace.load_model(model, tokenizer), "hidden", std=1.0)
    for given in (model, untouched):
        setattr(given.config, asked, value)
    with torch.no_grad():
        if used:
            model(input_ids=IDS)
        held = [list(module._forward_hooks.values()) for module in model.modules()]
        frame = traced(ktrace.load_model(model, tokenizer), "hidden", std=1.0)
        assert [list(module._forward_hooks.values()) for module in model.modules()] == held
        assert getattr(model.config, asked) == value
        assert lengths(model(input_ids=IDS)) == lengths(untouched(input_ids=IDS))
    pd.testing.assert_frame_equal(frame, plain, check_exact=True)
    assert "hooks" not in caplog.text


def test_hooks_that_come_and_go_meanwhile_are_as_before(in_memory: Any) -> None:
    """Those with keyword arguments too, and in their order."""
    layer = in_memory.model.layers[0]
    options: list[dict[str, Any]] = [{}, {"with_kwargs": True}, {"always_call": True}]
    handles = [layer.register_forward_hook(lambda *_: None, **each) for each in options]
    handles.append(layer.register_forward_pre_hook(lambda *_: None, with_kwargs=True))
    names = [name for name in vars(layer) if "forward" in name and "hooks" in name]
    before = {name: list(vars(layer)[name].items()) for name in names}
    assert sum(map(len, before.values())) == 7
    with use.in_use(in_memory):
        for handle in handles:
            handle.remove()
        for each in options:
            layer.register_forward_hook(print, **each)
        layer.register_forward_pre_hook(print)
    assert {name: list(vars(layer)[name].items()) for name in names} == before
    for handle in handles:
        handle.remove()
    assert not any(vars(layer)[name] for name in names)


TRAINING: dict[str, Callable[[Any], None]] = {
    "checkpoints": lambda model: model.gradient_checkpointing_enable(),
    "gradients of inputs": lambda model: model.enable_input_require_grads(),
}


@pytest.mark.parametrize("kind", TRAINING)
@pytest.mark.parametrize("mediator", ["hidden_mlp_severed", "knockout"])
def test_a_model_that_is_made_ready_for_training(
    kind: str,
    mediator: str,
    in_memory: Any,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
    no_proof: None,
) -> None:
    before = traced(ktrace.load_model(in_memory, tokenizer), mediator)
    TRAINING[kind](in_memory.train())
    hooks = looks(in_memory)["hooks"]
    lm = ktrace.load_model(in_memory, tokenizer)
    pd.testing.assert_frame_equal(traced(lm, mediator), before, check_exact=True)
    assert looks(in_memory)["hooks"] == hooks
    assert "hooks" not in caplog.text
    fact = {"prompt": PROMPT, "subject": SUBJECT, "attribute": None}
    assert len(ktrace.trace_many(lm, [fact], "attn", window=2, noise="multivariate"))
    in_memory(input_ids=IDS, labels=IDS).loss.backward()
    assert in_memory.model.layers[1].mlp.down_proj.weight.grad.abs().max() > 0


def test_experts_in_float64_go_back_to_their_kernel(tokenizer: Any, no_proof: None) -> None:
    model = tiny_model("MixtralForCausalLM", vocab_size=len(tokenizer)).double()
    before = model.config._experts_implementation
    assert before not in (None, "eager")
    lm = ktrace.load_model(model, tokenizer)
    traced(lm, "hidden", std=1.0)
    assert model.config._experts_implementation == before
    with use.in_use(model):
        assert model.config._experts_implementation == "eager"


def test_nobody_else_has_it_meanwhile(in_memory: Any) -> None:
    came: list[bool] = []

    def come() -> None:
        came.append(use._IN_USE[in_memory].acquire(blocking=False))

    with use.in_use(in_memory), use.in_use(in_memory):
        thread = threading.Thread(target=come)
        thread.start()
        thread.join()
    assert came == [False]


def test_hooks_of_somebody_else_take_part_and_are_told_once(
    in_memory: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture, no_proof: None
) -> None:
    lm = ktrace.load_model(in_memory, tokenizer)
    plain = traced(lm)
    handle = in_memory.model.layers[1].mlp.register_forward_hook(lambda *given: 0.5 * given[2])
    with caplog.at_level(logging.WARNING):
        steered = [traced(lm) for _ in range(2)]
    told = [record.getMessage() for record in caplog.records if "hooks" in record.getMessage()]
    assert told == [
        "LlamaForCausalLM has forward hooks on 1 module (the first is model.layers.1.mlp): they "
        "take part in every run"
    ]
    with torch.no_grad():
        in_memory.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    handle.remove()
    pd.testing.assert_frame_equal(steered[0], steered[1], check_exact=True)
    np.testing.assert_allclose(steered[0]["restored"], traced(lm)["restored"], atol=1e-5)
    assert not np.allclose(plain["restored"], steered[0]["restored"], atol=1e-3)


TINY = ROOT / "data" / "tiny"  # wide enough for blocks of rounded weights


def test_rounded_weights_are_multiplied_exactly_only_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounded = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(TINY, device_map={"": "cpu"}, **rounded)
    before = looks(model)
    lm = ktrace.load_model(model, AutoTokenizer.from_pretrained(TINY))
    prompt = "The World Wide Web was invented by"
    options: dict[str, Any] = {"subject": "The World Wide Web", "noise": "mean"}
    frame = ktrace.trace(lm, prompt, **options).to_frame()
    assert looks(model) == before
    # In the same way each time, so that nothing is proven again.
    monkeypatch.setattr(judge, "proven", None)
    same = ktrace.trace(lm, prompt, **options).to_frame()
    pd.testing.assert_frame_equal(same, frame, check_exact=True)
    monkeypatch.undo()
    from_files = ktrace.load_model("tiny", quantization="int8", device="cpu")
    expected = ktrace.trace(from_files, prompt, **options).to_frame()
    np.testing.assert_allclose(frame["restored"], expected["restored"], rtol=0, atol=1e-5)


def placed(folder: Path, into: Path, **places: str) -> Any:
    """A model that accelerate has spread, of which some may be on disk."""
    parts = {"embed_tokens": "cpu", "norm": "cpu", "rotary_emb": "cpu", "layers": "cpu"} | places
    spread = {f"model.{name}": place for name, place in parts.items()} | {"lm_head": "cpu"}
    return AutoModelForCausalLM.from_pretrained(folder, device_map=spread, offload_folder=into)


def test_layers_on_disk_are_fetched_as_ever(
    model_folder: Path, tokenizer: Any, tmp_path: Path, no_proof: None
) -> None:
    model = placed(model_folder, tmp_path, layers="disk")
    before = looks(model)
    found = traced(ktrace.load_model(model, tokenizer))
    assert looks(model) == before
    assert {weight.device.type for weight in model.model.layers.parameters()} == {"meta"}
    pd.testing.assert_frame_equal(found, traced(ktrace.load_model(model_folder)), check_exact=True)


def test_a_model_that_fails_by_itself_fails_in_a_line(in_memory: Any, tokenizer: Any) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no weights here\nand more")

    in_memory.model.norm.register_forward_hook(fail)
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.load_model(in_memory, tokenizer)
    assert str(raised.value) == (
        "model=LlamaForCausalLM fails on a made-up prompt: no weights here"
    )


def test_a_model_that_was_broken_since_fails_in_a_line(
    in_memory: Any, tokenizer: Any, no_proof: None
) -> None:
    lm = ktrace.load_model(in_memory, tokenizer)
    weight = in_memory.model.layers[1].mlp.down_proj.weight
    fact = {"prompt": PROMPT, "subject": SUBJECT, "attribute": None}
    calls = (lambda: traced(lm), lambda: ktrace.trace_many(lm, [fact]))
    whole = weight.data
    weight.data = whole[:, :3]
    for call in calls:
        with pytest.raises(
            ktrace.KtraceError, match=r"^model=LlamaForCausalLM fails on a made-up p"
        ):
            call()
    weight.data = whole
    in_memory.to("meta")
    for call in calls:
        with pytest.raises(
            ktrace.KtraceError, match=r"^model=LlamaForCausalLM has weights on the d"
        ):
            call()


def test_what_fails_by_itself_is_not_put_on_the_model(in_memory: Any) -> None:
    with pytest.raises(ValueError, match="of ours"), use.in_use(in_memory):
        raise ValueError("of ours")


def test_a_name_for_tables(in_memory: Any, tokenizer: Any) -> None:
    assert ktrace.load_model(in_memory, tokenizer, name="mine", window=4).window == 4
    in_memory.config._name_or_path = "owner/some model (v2)"
    assert ktrace.load_model(in_memory, tokenizer).name == "some-model-v2-"
    in_memory.config._name_or_path = ""
    lm = ktrace.load_model(in_memory, tokenizer)
    assert repr(lm) == (
        "LanguageModel('LlamaForCausalLM': LlamaForCausalLM, 3 layers, 32 wide, float32 on cpu)"
    )


class Around:
    """As a pipeline has its model and tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer


def slow(tokenizer: Any) -> Any:
    class Slow(transformers.PreTrainedTokenizerBase):
        is_fast = False

        def __init__(self) -> None:
            pass

        def __repr__(self) -> str:
            return "Slow"

    return Slow()


def with_compiled_forward(model: Any) -> Any:
    """As transformers' documents have it; nothing is compiled before it is called."""
    model.forward = torch.compile(model.forward)
    return model


Given = Callable[[Any, Any], tuple[object, ...]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda m, t: (t, m), r"model=\w+ is a tokenizer, which comes second: give load_model\("),
        (lambda m, t: (m,), "model=LlamaForCausalLM is in memory and has no tokenizer with it: gi"),
        (lambda m, t: (m, "tiny"), "tokenizer='tiny' is no tokenizer of transformers: give load_m"),
        (
            lambda m, t: (m, Around(m, t)),
            "tokenizer=Around is no tokenizer of transformers: give i",
        ),
        (lambda m, t: (m, slow(t)), "tokenizer: Slow gives no character offsets"),
        (lambda m, t: (Around(m, t), t), r"model=Around is no model of transformers: give its \.m"),
        (lambda m, t: (nn.DataParallel(m), t), r"model=DataParallel is no model .* its \.module$"),
        (lambda m, t: (torch.compile(m), t), r"model=OptimizedModule is no .* its \._orig_mod$"),
        (
            lambda m, t: (nn.DataParallel(torch.compile(m)), t),  # type: ignore[arg-type]
            r"model=DataParallel is no model .* give its \.module\._orig_mod$",
        ),
        (lambda m, t: (torch.compile(m.model), t), "model=OptimizedModule is no .* give load_mod"),
        (lambda m, t: (with_compiled_forward(m), t), "model=LlamaForCausalLM is compiled .mode"),
        (lambda m, t: (nn.Linear(2, 2), t), "model=Linear is no model of transformers: give load_"),
        (lambda m, t: (m.model, t), "model=LlamaModel has no head that predicts tokens: load it w"),
        (lambda m, t: (m.to("meta"), t), "model=LlamaForCausalLM has weights on the device meta"),
        (lambda m, t: (m.compile() or m, t), r"model=LlamaForCausalLM is compiled \(model\.comp"),
        (lambda m, t: ("tiny", t), "model='tiny' is read from files, which bring their tokenizer"),
        (lambda m, t: (ktrace.load_model(m, t),), r"model=LanguageModel\('random': .*\) is loaded"),
        (
            lambda m, t: (m, AutoTokenizer.from_pretrained(TINY)),
            r"\w+ has \d+ tokens, and LlamaForCausalLM embeddings for 386: tokenizer and we",
        ),
    ],
)
def test_what_is_no_model_with_its_tokenizer(
    in_memory: Any, tokenizer: Any, given: Given, message: str
) -> None:
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.load_model(*given(in_memory, tokenizer))
    assert re.match(message, str(raised.value)), raised.value
    assert "\n" not in str(raised.value)


def test_a_model_without_a_head_says_so(model_folder: Path, tokenizer: Any) -> None:
    """Its config names the class that it was loaded from, which has one."""
    with pytest.raises(ktrace.KtraceError, match="LlamaModel has no head"):
        ktrace.load_model(AutoModel.from_pretrained(model_folder), tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype='bfloat16' has no meaning for a model in memory, which is"),
        ({"device": "cpu"}, "device='cpu' has no meaning for a model in memory, which is taken as"),
        ({"attention": "sdpa"}, "attention='sdpa' has no meaning for a model in memory, which is"),
        ({"nam": "x"}, r"unknown key model.nam (did you mean name?); keys here: name, path, revis"),
        ({"name": "a/b"}, "name='a/b' cannot name a folder: use up to 200 letters, digits"),
        ({"window": 0}, "window=0 is out of range: at least 1"),
    ],
)
def test_what_a_model_in_memory_does_not_take(
    in_memory: Any, tokenizer: Any, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.load_model(in_memory, tokenizer, **overrides)
    assert str(raised.value).startswith(message)
