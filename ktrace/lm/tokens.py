"""Text to token ids: what the tokenizer does, with characters kept in sight."""

import re
from dataclasses import dataclass
from typing import Any

Tokenizer = Any  # of transformers, fast: `lm/load.py` refuses others


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as its model reads it.

    Attributes:
        input_ids: token ids, special tokens at the start included.
        offsets: `(first character, one past the last)` of each; empty for special tokens.
        tokens: the text of each, for people.
    """

    input_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    tokens: tuple[str, ...]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> EncodedPrompt:
    """Token ids and character offsets of a prompt.

    Special tokens that the tokenizer adds at the start (BOS) stay; those it adds at the end are
    dropped, because the answer is read where the prompt ends.
    """
    encoding = tokenizer(prompt, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    offsets = [(int(first), int(last)) for first, last in encoding["offset_mapping"]]
    n = len(ids)
    while n and offsets[n - 1][0] == offsets[n - 1][1] and ids[n - 1] in tokenizer.all_special_ids:
        n -= 1
    offsets = _own_characters(prompt, tokenizer.convert_ids_to_tokens(ids[:n]), offsets[:n])
    tokens = tuple(
        prompt[first:last].strip() or tokenizer.convert_ids_to_tokens(token)
        for token, (first, last) in zip(ids[:n], offsets, strict=True)
    )
    return EncodedPrompt(tuple(ids[:n]), tuple(offsets), tokens)


_SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level tokenizers write one
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token of its byte fallback


def _own_characters(
    prompt: str, pieces: list[str], offsets: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Offsets that name the characters of each token and no others.

    Tokenizers say too much in two places. The space that some put in front of a text is said to
    hold the text's first character, if it is a token of its own. And where SentencePiece spells
    characters in bytes, each byte is said to hold all the neighbours that are spelled so, too.
    """
    exact = list(offsets)
    for position, (piece, following) in enumerate(zip(pieces, offsets[1:], strict=False)):
        if piece in _SPACES and offsets[position][0] == 0 == following[0] < following[1]:
            exact[position] = (0, 0)
    position = 0
    while position < len(pieces):
        stop = position
        while (
            stop < len(pieces)
            and offsets[stop] == offsets[position]
            and _BYTE.fullmatch(pieces[stop])
        ):
            stop += 1
        spelled = bytes(int(piece[3:5], 16) for piece in pieces[position:stop])
        first, last = offsets[position]
        if spelled == prompt[first:last].encode():
            for n, letter in enumerate(prompt[first:last], start=first):
                for _ in letter.encode():
                    exact[position] = (n, n + 1)
                    position += 1
        position = max(stop, position + 1)
    return exact


def answer_token_ids(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[int, ...]:
    """Ids of the tokens that follow the prompt when the answer is written after it.

    None at all where the answer changes how the prompt itself is tokenised (its first letters merge
    with the prompt's last ones): there is then no token to predict.
    """
    ids = encode_prompt(tokenizer, prompt).input_ids
    longer = encode_prompt(tokenizer, f"{prompt.rstrip()} {answer.strip()}").input_ids
    return longer[len(ids) :] if longer[: len(ids)] == ids else ()


def subject_token_ids(tokenizer: Tokenizer, subject: str) -> tuple[int, ...]:
    """Token ids of a subject on its own, special tokens left out: what sigma is measured on."""
    return tuple(tokenizer(subject, add_special_tokens=False)["input_ids"])
