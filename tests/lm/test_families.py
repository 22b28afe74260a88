"""What is known of each architecture, and the lists of them in docs/models.md."""

import re

import pytest
import transformers

from ktrace.errors import KtraceError
from ktrace.lm.families import FAMILIES
from ktrace.lm.load import language_model
from ktrace.lm.model import LanguageModel
from ktrace.lm.paths import LAYER, LayerKind, ModulePaths
from ktrace.lm.refused import REFUSED
from tests.lm.families_tables import DOCUMENT, MAPPED, TABLES, begin, end, groups
from tests.support.families import tiny_model
from tests.support.places import ROOT

PINNED = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
of_the_pinned_transformers = pytest.mark.skipif(
    PINNED is None or transformers.__version__ != PINNED[1],
    reason="the lists are those of the transformers that constraints.txt pins",
)


@of_the_pinned_transformers
def test_every_causal_language_model_is_traced_or_refused_with_a_reason() -> None:
    found = groups()
    assert "nothing" not in found, found
    assert sum(map(len, found.values())) == len(set(MAPPED.values()))
    assert REFUSED.keys() <= set(MAPPED.values())
    assert not REFUSED.keys() & FAMILIES.keys()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n == "known architectures" else of_the_pinned_transformers)
        for n in TABLES
    ],
)
def test_the_document_lists_them_as_they_are(name: str) -> None:
    """`python -m tests.lm.families_tables` writes the lists."""
    text = DOCUMENT.read_text("utf-8")
    assert text.split(begin(name))[1].split(end(name))[0].strip() == TABLES[name]()


# Layers with attention, and with an MLP, of the small models of four layers.
HYBRIDS = {
    "BailingHybridForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "BambaForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "JambaForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "KimiLinearForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "Lfm2ForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "MiniMaxForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "NemotronHForCausalLM": ([1, 3], [2]),
    "OlmoHybridForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "Qwen3NextForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "Qwen3_5ForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "RecurrentGemmaForCausalLM": ([1, 3], [0, 1, 2, 3]),
    "Zamba2ForCausalLM": ([], []),
}


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_each_layer_of_a_hybrid_has_its_own_sites(architecture: str) -> None:
    lm = language_model(tiny_model(architecture))
    with_attention, with_mlp = HYBRIDS[architecture]
    paths = lm.paths
    assert paths.layers_with("hidden", lm.n_layers) == [0, 1, 2, 3]
    assert paths.layers_with("attn", lm.n_layers) == with_attention
    assert paths.layers_with("mlp", lm.n_layers) == with_mlp


def test_layers_of_two_kinds_may_keep_a_site_at_two_places() -> None:
    """OLMo's layers with attention normalise after their MLP, the others before it."""
    paths = language_model(tiny_model("OlmoHybridForCausalLM")).paths
    assert paths.sites(0) == {"hidden": "model.layers.0", "mlp": "model.layers.0.mlp"}
    assert paths.sites(1) == {
        "hidden": "model.layers.1",
        "attn": "model.layers.1.post_attention_layernorm",
        "mlp": "model.layers.1.post_feedforward_layernorm",
    }


@pytest.fixture(scope="module")
def hybrid() -> LanguageModel:
    return language_model(tiny_model("Qwen3_5ForCausalLM"))


def test_what_some_layer_has_is_granted(hybrid: LanguageModel) -> None:
    hybrid.paths.require("hidden", "mlp", "attn")
    assert hybrid.paths.layers_with("attn", hybrid.n_layers) == [1, 3]
    assert hybrid.paths.layers_with("mlp", hybrid.n_layers) == [0, 1, 2, 3]


def test_a_mixture_beside_a_shared_expert_is_no_site() -> None:
    """The block adds the two itself: neither is what the MLP adds."""
    shared = language_model(tiny_model("GraniteMoeSharedForCausalLM")).paths
    assert shared.sites(0).keys() == {"hidden", "attn"}
    with pytest.raises(KtraceError, match="no site 'mlp'"):
        shared.require("mlp")
    alone = tiny_model("GraniteMoeSharedForCausalLM", shared_intermediate_size=0)
    mixture = language_model(alone).paths.sites(0)["mlp"]
    assert mixture == "model.layers.0.block_sparse_moe"


def test_a_kind_is_known_by_all_of_its_marks() -> None:
    blocks = tiny_model("Qwen3_5ForCausalLM").model.layers
    assert [LayerKind(("self_attn",)).holds(block) for block in blocks[:2]] == [False, True]
    assert not LayerKind(("self_attn", "linear_attn")).holds(blocks[1])
    assert LayerKind(("self_attn:Qwen3_5Attention", "mlp")).holds(blocks[1])
    assert not LayerKind(("self_attn:Attention",)).holds(blocks[1])


def test_paths_within_a_larger_model() -> None:
    paths = ModulePaths("model.embed", f"model.h.{LAYER}", mlp=f"model.h.{LAYER}.mlp")
    assert paths.within("model.text") == ModulePaths(
        "model.text.embed", f"model.text.h.{LAYER}", mlp=f"model.text.h.{LAYER}.mlp"
    )
