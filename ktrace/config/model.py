"""Which model, from where, and how it is loaded: the keys `model.*`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from ktrace.terms import Choice


class Dtype(Choice):
    """Number format that the model computes in; `auto` takes the checkpoint's own."""

    auto = "auto"
    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantization(Choice):
    """Bits that weights are rounded to when they are loaded."""

    int8 = "int8"
    int4 = "int4"


@dataclass
class ModulesConfig:
    """Module paths of an unknown architecture; `[LAYER_NUM]` is the layer.

    Embedding and block are needed. Without `attn`, `mlp` or `heads`, mediators that restore, sever
    or cut it are refused.

    Example: `block: model.layers.[LAYER_NUM]`, `attn: model.layers.[LAYER_NUM].self_attn`.
    """

    embedding: str | None = None
    block: str | None = None
    attn: str | None = None
    mlp: str | None = None
    heads: str | None = None  # the attention's output projection, for mediator=head


@dataclass
class ModelConfig:
    """Which model, from where, and how it is loaded."""

    name: str = MISSING  # folder of the store, and the name in tables and titles
    path: str = MISSING  # local folder or hub id
    revision: str | None = None  # hub branch, tag or commit
    dtype: Dtype = Dtype.float32
    device: str = "auto"  # auto: CUDA, else MPS, else CPU; or cpu, cuda:1, ...
    device_map: Any = None  # passed to transformers (needs accelerate); excludes `device`
    attention: str | None = None  # eager, sdpa, ...: transformers' kernel; None: see load.py
    quantization: Quantization | None = None  # by bitsandbytes; needs it and accelerate
    trust_remote_code: bool = False  # whether Python code beside the weights may run
    allow_pickle: bool = False  # whether weights may be other than safetensors; these can run code
    # Layers restored together, unless mediator.window says otherwise.
    window: int = field(default=10, metadata={"least": 1})
    # Not None by default: Hydra could then not override one of its keys. `to_run_config` makes it
    # None where no path is given.
    modules: ModulesConfig | None = field(default_factory=ModulesConfig)
