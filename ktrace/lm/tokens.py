"""Text to token ids: what the tokenizer does, with characters kept in sight."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ktrace.errors import KtraceError

Tokenizer = Any  # of transformers, fast: `require_offsets` refuses others
Offsets = list[tuple[int, int]]


def require_offsets(tokenizer: Tokenizer, where: str) -> None:
    """Refuse a tokenizer that does not say which characters a token holds.

    Args:
        tokenizer: of transformers.
        where: what gave it, for the message.

    Raises:
        KtraceError: it is a slow one.
    """
    if not tokenizer.is_fast:
        raise KtraceError(
            f"{where}: {type(tokenizer).__name__} gives no character offsets (it has no "
            "tokenizer.json); subjects cannot be found with it"
        )


@dataclass(frozen=True)
class Frame:
    """What a model reads around a prompt.

    Attributes:
        before: text in front of it, as of a chat template.
        after: text behind it, in front of the answer and its separator.
        adds_special: whether the tokenizer adds special tokens: not where the text has its own.
        one_bos: whether of several BOS tokens at the start one alone is read.
    """

    before: str = ""
    after: str = ""
    adds_special: bool = True
    one_bos: bool = False

    def around(self, prompt: str) -> str:
        """The text that the model reads, up to the answer's separator."""
        return f"{self.before}{prompt}{self.after}"


PLAIN = Frame()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as its model reads it.

    Attributes:
        input_ids: token ids, of special tokens and of what is around the prompt, too.
        offsets: characters of the prompt that each holds: the first, and one past the last; empty
            for tokens that hold none of them.
        tokens: the text of each, for people.
    """

    input_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    tokens: tuple[str, ...]

    def going_on(
        self, tokenizer: Tokenizer, ids: Sequence[int], n_kept: int | None = None
    ) -> "EncodedPrompt":
        """With other tokens at its end, none of which holds a character of the prompt.

        Args:
            tokenizer: its own.
            ids: the other tokens.
            n_kept: how many of its own stay; None for all.
        """
        end = max(last for _, last in self.offsets)
        return EncodedPrompt(
            (*self.input_ids[:n_kept], *ids),
            (*self.offsets[:n_kept], *((end, end) for _ in ids)),
            (*self.tokens[:n_kept], *tokenizer.convert_ids_to_tokens(list(ids))),
        )


def encode_prompt(tokenizer: Tokenizer, prompt: str, frame: Frame = PLAIN) -> EncodedPrompt:
    """Token ids and character offsets of a prompt.

    Special tokens that the tokenizer adds at the start (BOS) stay; those it adds at the end are
    dropped, because the answer is read where the prompt ends.
    """
    text, start = frame.around(prompt), len(frame.before)
    ids, offsets = _encoded(tokenizer, text, frame)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    tokens = [
        text[first:last].strip() or piece
        for piece, (first, last) in zip(pieces, offsets, strict=True)
    ]
    own = [tuple(min(max(bound - start, 0), len(prompt)) for bound in bounds) for bounds in offsets]
    return EncodedPrompt(tuple(ids), tuple((first, last) for first, last in own), tuple(tokens))


def _encoded(tokenizer: Tokenizer, text: str, frame: Frame) -> tuple[list[int], Offsets]:
    encoding = tokenizer(text, add_special_tokens=frame.adds_special, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    offsets = [(int(first), int(last)) for first, last in encoding["offset_mapping"]]
    n = len(ids)
    while n and offsets[n - 1][0] == offsets[n - 1][1] and ids[n - 1] in tokenizer.all_special_ids:
        n -= 1
    start = n_bos(tokenizer, ids) - 1 if frame.one_bos and n_bos(tokenizer, ids) else 0
    ids, offsets = ids[start:n], offsets[start:n]
    return ids, _own_characters(text, tokenizer.convert_ids_to_tokens(ids), offsets)


def n_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    """How many BOS tokens stand at the start."""
    others = (n for n, token in enumerate(ids) if token != tokenizer.bos_token_id)
    return next(others, len(ids))


_SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level tokenizers write one
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token of its byte fallback


def _own_characters(text: str, pieces: Sequence[str], offsets: Offsets) -> Offsets:
    """Offsets that name the characters of each token and no others.

    Tokenizers say too much in two places. The space that some put in front of a text, or behind a
    special token, is said to hold the character that follows it, if it is a token of its own. And
    where SentencePiece spells characters in bytes, each byte is said to hold all the neighbours
    that are spelled so, too.
    """
    exact = list(offsets)
    for position, (piece, following) in enumerate(zip(pieces, offsets[1:], strict=False)):
        first = offsets[position][0]
        if piece in _SPACES and first == following[0] < following[1]:
            exact[position] = (first, first)
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
        if spelled == text[first:last].encode():
            for n, letter in enumerate(text[first:last], start=first):
                for _ in letter.encode():
                    exact[position] = (n, n + 1)
                    position += 1
        position = max(stop, position + 1)
    return exact


class Merged(NamedTuple):
    """A token that holds the end of a prompt and the beginning of its answer, or comes of both.

    Attributes:
        token: its text.
        of_prompt: what of it the prompt holds.
    """

    token: str
    of_prompt: str


class PlacedAnswer(NamedTuple):
    """An answer's tokens where it stands.

    Attributes:
        n_kept: the prompt's tokens, up to the last one that shows anything.
        read: tokens between those and the answer, as they are cut where it follows: blanks alone.
        ids: tokens that hold any of its characters; none where it merges with the prompt, or where
            the tokenizer keeps nothing of it.
        merged: where it does so.
    """

    n_kept: int
    read: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    merged: Merged | None = None


def place_answer(
    tokenizer: Tokenizer, prompt: str, separator: str, answer: str, frame: Frame = PLAIN
) -> PlacedAnswer:
    """The tokens of an answer where it is written after its prompt.

    Args:
        tokenizer: of the model.
        prompt: as in `encode_prompt`.
        separator: what stands between the two.
        answer: begins with a character that shows.
        frame: as in `encode_prompt`.
    """
    before = frame.around(prompt)
    text, end = f"{before}{separator}{answer}", len(before.rstrip())
    ids, offsets = _encoded(tokenizer, before, frame)
    longer, places = _encoded(tokenizer, text, frame)
    shown = (n for n, (first, last) in enumerate(offsets) if first < min(last, end))
    n_kept = 1 + max(shown, default=-1)
    if longer[:n_kept] != ids[:n_kept]:
        return PlacedAnswer(n_kept, merged=_merged(text, end, (ids, longer), places))
    begin = len(before) + len(separator)
    holds = (
        n for n, (first, last) in enumerate(places) if n >= n_kept and last > max(first, begin)
    )
    start = next(holds, len(longer))
    return PlacedAnswer(n_kept, tuple(longer[n_kept:start]), tuple(longer[start:]))


def _merged(text: str, end: int, pair: tuple[list[int], list[int]], places: Offsets) -> Merged:
    """The token across the end of a prompt, else the first one that it has not on its own."""
    same = [own == joined for own, joined in zip(*pair, strict=False)]
    other = same.index(False) if False in same else len(same) - 1
    across = [bounds for bounds in places if bounds[0] < end < bounds[1]]
    first, last = across[0] if across else places[other]
    return Merged(text[first:last], text[first:end])


def answer_token_ids(
    tokenizer: Tokenizer, prompt: str, answer: str, separator: str = " "
) -> tuple[int, ...]:
    """See `PlacedAnswer.ids`."""
    return place_answer(tokenizer, prompt, separator, answer).ids


def subject_token_ids(tokenizer: Tokenizer, subject: str) -> tuple[int, ...]:
    """Token ids of a subject on its own, special tokens left out: what sigma is measured on."""
    return tuple(tokenizer(subject, add_special_tokens=False)["input_ids"])


def decoded(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Tokens as text."""
    text: str = tokenizer.decode(tokens)
    return text.replace("\0", "␀")  # HDF5 ends a text at NUL
