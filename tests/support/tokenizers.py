"""Tokenizers of the kinds that models have, trained here; and what their tokens are in bytes."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import trainers as t
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.support.places import ROOT

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# The expression of cl100k and Llama 3.
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}


def texts() -> list[str]:
    """The embedded prompts."""
    lines = (ROOT / "data" / "facts.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def byte_level_bpe(prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's, with a BOS token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts(), _bpe())
    return _with_bos(tokenizer)


def tiktoken_style() -> PreTrainedTokenizerFast:
    """As Llama 3's: an expression cuts the text, then byte-level BPE; BOS from a template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_TIKTOKEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts(), _bpe())
    return _with_bos(tokenizer)


def sentencepiece_unigram() -> PreTrainedTokenizerFast:
    """As T5's and Gemma's: a space in front, unknown characters spelled in bytes."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        texts(),
        t.UnigramTrainer(
            vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    # The trainer knows of no bytes.
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"] += [[byte, -20.0] for byte in _BYTES]
    spec["model"] |= {"byte_fallback": True, "unk_id": 0}
    return _with_bos(Tokenizer.from_str(json.dumps(spec)))


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """As Llama 2's: the space in front comes from the normalizer."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(AddedToken(byte) for byte in _BYTES)]
    tokenizer.train_from_iterator(
        (word for text in texts() for word in text.split()),
        t.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False),
    )
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]  # bytes are pieces, not marks in the text
    return _with_bos(Tokenizer.from_str(json.dumps(spec)))


def _bpe() -> t.BpeTrainer:
    return t.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=_ALPHABET,
        show_progress=False,
    )


def _with_bos(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def spelled(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """What each token stands for, without the tokenizer's offsets: nothing for special tokens."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    special = set(tokenizer.all_special_tokens)
    if tokenizer.backend_tokenizer.token_to_id("<0x00>") is not None:
        return [
            b""
            if piece in special
            else bytes([_BYTES.index(piece)])
            if piece in _BYTES
            else piece.replace("▁", " ").encode()
            for piece in pieces
        ]
    return [
        b"" if piece in special else bytes(_BYTE_OF[letter] for letter in piece) for piece in pieces
    ]
