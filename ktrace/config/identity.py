"""What a config's settings are called on disk: folder names and fingerprints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ktrace import terms
from ktrace.config.activations import KeptStates, kept_states
from ktrace.config.dataset import Bos, DatasetConfig, Separator
from ktrace.config.model import Dtype, ModelConfig
from ktrace.config.noise import NOISE_KEYS, NoiseConfig
from ktrace.config.schema import RunConfig
from ktrace.errors import KtraceError

_HALF = (Dtype.bfloat16, Dtype.float16)

# Plain names and values, as JSON has them.
Fingerprint = Mapping[str, object]


class Content(NamedTuple):
    """Which facts: their number, and the SHA-256 of their canonical JSON."""

    sha256: str
    n_facts: int


@dataclass(frozen=True)
class Fingerprints:
    """What determines the numbers of a run's stores, as their parts carry it.

    Attributes:
        model: identity, dtype, quantization and module paths; not the device.
        dataset: its content, and what is scored of the answers.
        noise: the settings that its kind reads, alone.
        noise_facts: what the noise is measured on, where that is another dataset.
        kept: which states are stored, by kind of run: `clean`, `corrupted`; none where none are.
    """

    model: Fingerprint
    dataset: Fingerprint
    noise: Fingerprint
    noise_facts: Fingerprint | None
    kept: Mapping[str, KeptStates]

    @property
    def clean(self) -> Fingerprint:
        """Of clean runs, which every noise and mediator shares."""
        return {"model": self.model, "dataset": self.dataset}

    @property
    def corrupted(self) -> Fingerprint:
        """Of corrupted runs."""
        measured_on = {} if self.noise_facts is None else {"noise_facts": self.noise_facts}
        return {**self.clean, "noise": self.noise, **measured_on}

    def restored(self, mediator_key: str) -> Fingerprint:
        """Of restorations of one mediator, such as `mlp-w10`."""
        return {**self.corrupted, "mediator": mediator_key}

    def activations(self, kind: str, kept: KeptStates) -> Fingerprint:
        """Of the states of clean or corrupted runs."""
        of_runs = self.clean if kind == "clean" else self.corrupted
        return {**of_runs, "activations": kept.fingerprint}


def fingerprints(
    config: RunConfig, identity: str, facts: Content, noise_facts: Content | None = None
) -> Fingerprints:
    """The fingerprints of a run.

    Args:
        config: its `model.dtype` is resolved.
        identity: which weights, config and tokenizer: `ktrace.lm.source.ModelSource.identity`.
        facts: of the whole dataset, whatever `dataset.limit` says.
        noise_facts: of `dataset.noise_facts`.
    """
    return Fingerprints(
        model_fingerprint(config.model, identity),
        dataset_fingerprint(config.dataset, facts),
        noise_fingerprint(config.noise),
        None if noise_facts is None else noise_facts._asdict(),
        kept_states(config.activations, config.noise.samples),
    )


def model_fingerprint(model: ModelConfig, identity: str) -> Fingerprint:
    """See `Fingerprints.model`."""
    found: dict[str, object] = {
        "identity": identity,
        "dtype": model.dtype.value,
        "quantization": model.quantization.value if model.quantization else None,
        "modules": asdict(model.modules) if model.modules else None,
    }
    if model.attention is not None and model.dtype in _HALF:
        # By 1e-4 in a probability; in wider formats kernels differ by rounding alone.
        found["attention"] = model.attention
    return found


def dataset_fingerprint(dataset: DatasetConfig, facts: Content) -> Fingerprint:
    """See `Fingerprints.dataset`."""
    return {**facts._asdict(), **_scored(dataset)}


def _scored(dataset: DatasetConfig) -> dict[str, object]:
    """What is scored of answers, and how they and prompts are put where that is not the default."""
    found: dict[str, object] = {"answer": dataset.answer.value}
    if dataset.separator is not Separator.auto:
        found["separator"] = dataset.separator.value
    if dataset.chat:
        found["chat"] = True
    if dataset.bos is not Bos.keep:
        found["bos"] = dataset.bos.value
    return found


def noise_fingerprint(noise: NoiseConfig) -> Fingerprint:
    """See `Fingerprints.noise`."""
    settings = {
        "replace": noise.replace,
        "multiple": None if noise.std is not None else noise.level_multiple,
        "std": noise.std,
        "degrees": noise.degrees,
        "foil": noise.foil.value,
        "samples": noise.samples,
        "seed": noise.seed,
    }
    read = NOISE_KEYS[noise.kind]
    return {"kind": noise.kind.value, **{key: settings[key] for key in settings if key in read}}


def dataset_key(dataset: DatasetConfig) -> str:
    """Folder of a dataset; see `ktrace.terms.dataset_key`."""
    return terms.dataset_key(dataset.name, _scored(dataset))


def noise_key(noise: NoiseConfig) -> str:
    """Folder of a noise; see `ktrace.terms.noise_key`."""
    return terms.noise_key(noise_fingerprint(noise))


def resolved_dtype(model: ModelConfig, own: str | None) -> Dtype:
    """The number format that a model computes in: never `auto`.

    Args:
        model: the config; `auto` stands for the checkpoint's own.
        own: what the checkpoint says.

    Raises:
        KtraceError: `auto`, and the checkpoint does not say, or says another than ktrace knows.
    """
    if model.dtype is not Dtype.auto:
        return model.dtype
    known = [dtype.value for dtype in Dtype if dtype is not Dtype.auto]
    if own not in known:
        said = f"says {own!r}" if own else "does not say which"
        raise KtraceError(
            f"model.dtype=auto takes the checkpoint's own, and model.path={model.path} {said}: "
            f"choose from {', '.join(known)}"
        )
    return Dtype(own)
