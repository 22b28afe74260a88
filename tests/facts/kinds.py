"""The tokenizers that spans and answers are tested with: trained here, and GPT-2's as published."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.support.places import SHARED
from tests.support.tokenizers import (
    byte_level_bpe,
    sentencepiece_bpe,
    sentencepiece_unigram,
    spelled,
    tiktoken_style,
)

# Words that no merge leads to: `ignore_merges` takes them whole where they stand alone.
WHOLE = ("-speaking", "ĠKingdom", "ĠParis", "Paris", "Ġ1958", "1958", "ĠMoscow")


def ignore_merges() -> PreTrainedTokenizerFast:
    """As Llama 3's own file: words of the vocabulary are tokens, whatever the merges say."""
    spec = json.loads(tiktoken_style().backend_tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {word: len(vocabulary) + n for n, word in enumerate(WHOLE)}
    spec["model"]["ignore_merges"] = True
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), bos_token="<s>", eos_token="</s>"
    )


def gpt2() -> Any:
    """GPT-2's own, where it lies beside the checkout."""
    folder = SHARED / "tokenizers" / "gpt2"
    if not folder.is_dir():
        pytest.skip("needs the published data beside the checkout (../shared)")
    return AutoTokenizer.from_pretrained(folder)


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level_bpe": cache(byte_level_bpe),
    "byte_level_bpe_with_prefix_space": cache(lambda: byte_level_bpe(prefix_space=True)),
    "tiktoken_style": cache(tiktoken_style),
    "ignore_merges": cache(ignore_merges),
    "sentencepiece_unigram": cache(sentencepiece_unigram),
    "sentencepiece_bpe": cache(sentencepiece_bpe),
    "gpt2": cache(gpt2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def places_of(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Bytes of a text that each token spells, without the offsets that the tokenizer reports.

    A space that the tokenizer puts in front of the text is at -1.
    """
    pieces = spelled(tokenizer, ids)
    whole = b"".join(pieces)
    in_front = len(whole) - len(text.encode())
    assert in_front in (0, 1)
    assert whole[in_front:] == text.encode()
    ends = accumulate(map(len, pieces))
    return [
        (end - len(piece) - in_front, end - in_front)
        for piece, end in zip(pieces, ends, strict=True)
    ]


def bytes_of(text: str, start: int, stop: int) -> tuple[int, int]:
    """Characters of a text, as its bytes are counted."""
    return len(text[:start].encode()), len(text[:stop].encode())
