"""What of a model puts text into its tokens, without its weights: for `stage=check`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from transformers import AutoConfig

from ktrace.config import ModelConfig
from ktrace.errors import KtraceError
from ktrace.lm.devices import first_line
from ktrace.lm.hub import hub_file
from ktrace.lm.load import load_tokenizer, origin_of
from ktrace.lm.model import LanguageModel, longest_prompt
from ktrace.lm.source import ModelSource
from ktrace.lm.tokens import Tokenizer


@dataclass(frozen=True)
class Reader:
    """How a model reads text.

    Attributes:
        tokenizer: its own.
        n_embeddings: one more than the largest token id that its config has.
        max_positions: see `LanguageModel.max_positions`.
    """

    tokenizer: Tokenizer
    n_embeddings: int
    max_positions: int | None


# Either can say which tokens a text has; only the first what follows it.
Reads: TypeAlias = LanguageModel | Reader


def load_reader(config: ModelConfig) -> Reader:
    """A model's tokenizer and the config beside it; weights are neither needed nor fetched.

    Raises:
        KtraceError: no such folder or hub id, no access, no network, or a tokenizer without
            offsets.
    """
    where = f"model.path={config.path}"
    folder, revision = Path(config.path).expanduser(), config.revision
    if not folder.is_dir():
        asked = where + (f" model.revision={revision}" if revision else "")
        folder = hub_file(config.path, "config.json", revision=revision, asked=asked).parent
        revision = folder.name
    source = ModelSource(str(folder), None, "", folder)
    if revision is not None:
        source = ModelSource(config.path, revision, "", folder)
    origin = origin_of(source, config)
    tokenizer = load_tokenizer(source, origin, where)
    try:
        text_config = AutoConfig.from_pretrained(source.location, **origin).get_text_config()
    except (OSError, ValueError, KeyError, ImportError) as error:
        message = f"{where}: config.json cannot be used: {first_line(error)}"
        raise KtraceError(message) from error
    return Reader(tokenizer, int(text_config.vocab_size), longest_prompt(text_config))
