"""What transformers builds as causal language models, and ktrace does not trace: data, not code."""

from collections.abc import Mapping

_ENCODER = "it is an encoder, whose checkpoints read a prompt from both sides"
_HALF = "it is the decoder of an encoder-decoder, made to read what its encoder gives"
_STREAMS = "its blocks keep several residual streams, not one state of each position"
_DRAFTS = "it drafts from another model's states, not from a prompt alone"
_SOUND = "it writes codes of sound, not text"

# Why a class has no sites. Module paths that are given (model.modules) are tried all the same, and
# go through the probe.
REFUSED: Mapping[str, str] = {
    "BartForCausalLM": _HALF,
    "BertGenerationDecoder": _HALF,
    "BertLMHeadModel": _ENCODER,
    "BigBirdForCausalLM": _ENCODER,
    "BigBirdPegasusForCausalLM": _HALF,
    "BlenderbotForCausalLM": _HALF,
    "BlenderbotSmallForCausalLM": _HALF,
    "BltForCausalLM": "it reads bytes in patches, which are no tokens of a prompt",
    "CamembertForCausalLM": _ENCODER,
    "CpmAntForCausalLM": "it puts tokens of its own before the prompt, and reads them both ways",
    "Data2VecTextForCausalLM": _ENCODER,
    "DeepseekV4ForCausalLM": _STREAMS,
    "ElectraForCausalLM": _ENCODER,
    "ErnieForCausalLM": _ENCODER,
    "Gemma3nForCausalLM": _STREAMS,
    "Gemma4AssistantForCausalLM": _DRAFTS,
    "Gemma4UnifiedAssistantForCausalLM": _DRAFTS,
    "GitForCausalLM": "it describes images: its text stands behind an image",
    "HYV4ForCausalLM": _STREAMS,
    "HrmTextForCausalLM": "its blocks run several times in a pass",
    "Inkling2ForCausalLM": "its blocks read what several blocks before them gave, each by itself",
    "MBartForCausalLM": _HALF,
    "MarianForCausalLM": _HALF,
    "MegatronBertForCausalLM": _ENCODER,
    "MllamaForCausalLM": "some of its blocks run only where there is an image",
    "MusicgenForCausalLM": _SOUND,
    "MusicgenMelodyForCausalLM": _SOUND,
    "MvpForCausalLM": _HALF,
    "PLBartForCausalLM": _HALF,
    "PegasusForCausalLM": _HALF,
    "ProphetNetForCausalLM": _HALF,
    "Qwen4ExpForCausalLM": _STREAMS,
    "ReformerModelWithLMHead": _STREAMS,
    "RemBertForCausalLM": _ENCODER,
    "RoCBertForCausalLM": _ENCODER,
    "RoFormerForCausalLM": _ENCODER,
    "RobertaForCausalLM": _ENCODER,
    "RobertaPreLayerNormForCausalLM": _ENCODER,
    "RwkvForCausalLM": "its blocks hand on a state beside what they give",
    "TrOCRForCausalLM": _HALF,
    "WhisperForCausalLM": _HALF,
    "XLMRobertaForCausalLM": _ENCODER,
    "XLMRobertaXLForCausalLM": _ENCODER,
    "XLMWithLMHeadModel": "it has no module for a block: attention and MLP of a layer stand apart",
    "XLNetLMHeadModel": "it reads a prompt in any order, in two streams",
    "XmodForCausalLM": _ENCODER,
}
