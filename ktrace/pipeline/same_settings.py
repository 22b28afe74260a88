"""Before an analysis: whether the stores hold what the config asks for.

The stages that run a model compare the whole fingerprint. The analysis needs neither the model nor
the facts, so it compares what is at hand here, and says what is not. No torch, no network.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ktrace.config import Dtype, ModelConfig, RunConfig
from ktrace.config.identity import (
    Fingerprint,
    dataset_fingerprint,
    model_fingerprint,
    noise_fingerprint,
    resolved_dtype,
)
from ktrace.facts.dataset import facts_of, require_fit
from ktrace.lm.source import checkpoint_dtype, local_folder
from ktrace.redaction import redacted
from ktrace.store import RunFolders

log = logging.getLogger(__name__)


def require_same_settings(config: RunConfig, folders: RunFolders) -> None:
    """Refuse stores of other settings; log what could not be compared.

    Raises:
        KtraceError: stores of another dtype, quantization, module paths, noise or dataset content,
            with both values; pairs without the foil that the metric compares with; or a file of the
            model or the dataset that cannot be read.
    """
    stored = folders.clean.fingerprint()
    if stored is None:  # the analysis says what to do
        return
    model = _model(config.model, stored.get("model", {}))
    dataset = _dataset(config, stored.get("dataset", {}))
    # Not `Store.done`: that sets damaged parts aside to have them computed again, which an analysis
    # never does, and reads every activation to find them.
    folders.clean.require({**stored, "model": model, "dataset": dataset})
    of_noise = folders.corrupted.fingerprint()
    if of_noise is not None:
        folders.corrupted.require({**of_noise, "noise": noise_fingerprint(config.noise)})
    _note_other_model(config.model, folders, stored.get("model", {}))


def _model(config: ModelConfig, stored: dict[str, Any]) -> Fingerprint:
    """The config's fingerprint; the identity, which needs the weights, is taken as it is stored."""
    if config.dtype is Dtype.auto:
        folder = local_folder(config.path, config.revision)
        own = checkpoint_dtype(folder) if folder else None
        if own is None:
            return {**model_fingerprint(config, stored["identity"]), "dtype": stored["dtype"]}
        config = replace(config, dtype=resolved_dtype(config, own))
    return model_fingerprint(config, stored["identity"])


def _dataset(run: RunConfig, stored: dict[str, Any]) -> Fingerprint:
    """Facts that are at hand must hold what the metric compares with: stores do not tell."""
    config = run.dataset
    on_disk = config.hub is None and config.path and Path(config.path).expanduser().is_file()
    if config.prompt is None and not on_disk:
        log.info(
            "%s: the stores are not compared with it (sha256:%s)",
            f"dataset.path={config.path}: not on this machine"
            if config.hub is None
            else f"dataset.hub={config.hub}: not read by stage=analyze",
            stored.get("sha256"),
        )
        return stored
    facts = facts_of(config)
    require_fit(facts, run.noise, run.metric)
    return dataset_fingerprint(config, facts.content)


def _note_other_model(config: ModelConfig, folders: RunFolders, stored: dict[str, Any]) -> None:
    """The weights are not read, so that an analysis takes seconds whatever the model's size."""
    identity = stored["identity"]
    origins = {
        path
        for about, _ in folders.clean.provenance()
        if isinstance(path := (about.get("model") or {}).get("path"), str)
    }
    folder = local_folder(config.path, config.revision)
    if origins and redacted(config.path) not in origins:
        there = ", ".join(sorted(origins))
        what = f"the stores were computed with model.path={there}"
    elif folder is None:
        what = "not on this machine: the stores are not compared with it"
    elif identity.startswith("commit:") and folder.name != identity.removeprefix("commit:"):
        what = f"the commit at hand is {folder.name}, the stores are of another"
    else:
        return
    log.info("model.path=%s: %s (%s)", config.path, what, identity)
