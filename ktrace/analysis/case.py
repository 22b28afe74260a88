"""One fact that no store holds, what `ktrace.trace` gave of a prompt, as stores would give it.

Axes are those of effects.py; n_places, positions that a mediator acted at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ktrace.analysis.effects import COLUMNS
from ktrace.analysis.rows import rows
from ktrace.store import CleanRecord, CorruptedRecord, RestoredRecord
from ktrace.store.records import Scores
from ktrace.terms import METRICS, has_heads


@dataclass(frozen=True)
class TracedCase:
    """A traced prompt.

    Attributes:
        model: its name.
        mediator: its key, such as `mlp-w10`.
        known_id: the fact's own number.
        prompt: its text.
        subject: the part of it that was corrupted; empty where a pair has none.
        answers: what is scored, then other right answers.
        tokens: of the prompt, `(n_positions,)`.
        roles: in the scheme `rome`, None before the subject, `(n_positions,)`.
        span: first position of the subject, and one past its last.
        positions: that the last axis of `restored` is of, `(n_places,)`.
        clean: `(n_samples,)` for each metric.
        corrupted: likewise.
        restored: `(n_samples, n_layers, n_places)` for each metric, with heads `(n_samples,
            n_layers, n_heads, n_places)`.
    """

    model: str
    mediator: str
    known_id: int
    prompt: str
    subject: str
    answers: Sequence[str]
    tokens: Sequence[str]
    roles: Sequence[str | None]
    span: tuple[int, int]
    positions: Sequence[int]
    clean: Scores
    corrupted: Scores
    restored: Scores

    def frame(self) -> pd.DataFrame:
        """With the columns of `load_effects`.

        Returns:
            A row for each metric, sample, layer, position and head; `relation_id` is missing; no
            `head` where the mediator has none.
        """
        frames = []
        for metric in METRICS:
            axes = np.indices(self.restored[metric].shape, dtype=np.int16)
            sample, layer, place = (axes[axis].ravel() for axis in (0, 1, -1))
            frames.append(
                pd.DataFrame(
                    {
                        "metric": metric,
                        "sample": sample,
                        "layer": layer,
                        "position": np.asarray(self.positions, dtype=np.int16)[place],
                        "head": axes[2].ravel(),
                        "clean": self.clean[metric].astype(np.float32)[sample],
                        "corrupted": self.corrupted[metric].astype(np.float32)[sample],
                        "restored": self.restored[metric].astype(np.float32).ravel(),
                    }
                )
            )
        frame: pd.DataFrame = pd.concat(frames, ignore_index=True).assign(
            known_id=np.int64(self.known_id)
        )
        at = frame["position"].to_numpy()
        # As in the stores' frame: those of the whole prompt, wherever the mediator acted.
        texts = list(dict.fromkeys(self.tokens))
        frame["token"] = pd.Categorical(np.asarray(self.tokens, dtype=object)[at], categories=texts)
        frame["role"] = pd.Categorical(
            np.asarray(self.roles, dtype=object)[at], categories=rows("rome")
        )
        same = {name: getattr(self, name) for name in ("model", "mediator", "subject", "prompt")}
        nothing = pd.Index([], dtype=object)
        for name, value in (same | {"relation_id": ""}).items():
            known = None if value else nothing
            frame[name] = pd.Categorical([value or None] * len(frame), categories=known)
        frame["metric"] = pd.Categorical(frame["metric"], categories=METRICS)
        frame["head"] = frame["head"].astype("Int16")
        ordered: pd.DataFrame = frame[
            [n for n in COLUMNS if n != "head" or has_heads(self.mediator)]
        ]
        return ordered

    def records(self) -> tuple[CleanRecord, CorruptedRecord, RestoredRecord]:
        """Its clean and corrupted runs, and what the mediator made of them.

        Token ids, sigma, level and foils are left empty: no page or table shows those of one fact.
        """
        none = np.empty(0, dtype=np.int64)
        offsets = np.zeros((len(self.tokens), 2), dtype=np.int64)
        offsets[slice(*self.span)] = self._corrupted_part()
        p_clean = float(self.clean[METRICS[0]][0])
        clean = CleanRecord(
            index=0,
            known_id=self.known_id,
            prompt=self.prompt,
            subject=self.subject,
            attribute=" | ".join(self.answers),
            relation_id="",
            left_out="",
            is_candidate=True,
            input_ids=none,
            tokens=tuple(self.tokens),
            offsets=offsets,
            roles=[role or "" for role in self.roles],
            span=self.span,
            answer_ids=none,
            predicted_ids=none,
            predicted=self.answers[0],
            predicted_probability=p_clean,
            probability=p_clean,
        )
        corrupted = CorruptedRecord(
            *(0, self.known_id, "", np.nan, np.nan, none, ()),
            clean=self.clean,
            corrupted=self.corrupted,
        )
        axis = () if has_heads(self.mediator) else (2,)
        restored = {name: np.expand_dims(scores, axis) for name, scores in self.restored.items()}
        places = np.asarray(self.positions, dtype=np.int64)
        return clean, corrupted, RestoredRecord(0, self.known_id, "", places, restored)

    def _corrupted_part(self) -> tuple[int, int]:
        """First character of what was corrupted, and one past its last; 0 and 0 if not found.

        Where the prompt holds it more than once, the tokens before tell which it is. They may have
        lost their blanks.
        """
        start, stop = self.span
        part = self.subject or "".join(self.tokens[start:stop]).strip()
        before = "".join("".join(self.tokens[:start]).split())
        at = self.prompt.find(part)
        for _ in range(before.count("".join(part.split()))):
            at = max(at, self.prompt.find(part, at + 1))
        return (at, at + len(part)) if at >= 0 else (0, 0)
