"""Two traced prompts side by side: the effects of one minus those of the other.

Axes: n_layers, of both models; n_heads, of a layer, where the mediators have heads; n_tokens, of a
prompt; n_rows, its tokens, or the roles of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from ktrace.analysis.figures.fonts import use_installed_fonts
from ktrace.analysis.figures.heatmaps import fact_heatmap
from ktrace.analysis.figures.look import Prompt, chosen_look, probability_text
from ktrace.analysis.figures.style import shown_by_jupyter
from ktrace.analysis.notebook import image
from ktrace.analysis.rows import rows
from ktrace.analysis.strongest import strongest_heads
from ktrace.analysis.tokens import abridged
from ktrace.errors import KtraceError
from ktrace.facts import Span
from ktrace.terms import METRICS, has_heads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
BY = ("position", "role")
_WITHIN = ("subject", "answer")  # of a prompt
_TEXTS = ("prompt", *_WITHIN)
_MOST_LETTERS = 30  # of what tells two traces apart, in a title


@dataclass(frozen=True, eq=False)
class Side:
    """One of two traces.

    Attributes:
        told: what may tell it from the other: model, mediator, noise, prompt, subject, answer.
        mediator: its key.
        tokens: of the prompt, `(n_tokens,)`.
        roles: in the scheme `rome`, None before the subject, `(n_tokens,)`.
        span: positions of the subject.
        effects: for each metric, averaged over samples, `(n_layers, n_tokens)`, with heads
            `(n_layers, n_heads, n_tokens)`; NaN where the mediator did not act.
    """

    told: Mapping[str, str]
    mediator: str
    tokens: Sequence[str]
    roles: Sequence[str | None]
    span: Span
    effects: Mapping[str, Array]

    @property
    def shape(self) -> tuple[int, ...]:
        """Layers, and heads where there are any."""
        return self.effects[METRICS[0]].shape[:-1]

    def by_role(self, metric: str, roles: Sequence[str]) -> Array:
        """Effects averaged over the positions of each role, `(n_layers, n_rows)`."""
        found = []
        for role in roles:
            own = self.effects[metric][..., [one == role for one in self.roles]]
            acted = ~np.isnan(own)
            total = np.where(acted, own, 0.0).sum(axis=-1)
            counts = acted.sum(axis=-1)
            found.append(np.where(counts > 0, total / np.maximum(counts, 1), np.nan))
        return np.stack(found, axis=-1)


@dataclass(frozen=True, repr=False, eq=False)
class TraceDifference:
    """The effects of one trace minus those of another: what `Trace.compare` gives.

    Attributes:
        title: what was subtracted from what.
        mediator: the left one's, whose colours the heatmap has.
        by: what the rows are: `position` or `role`.
        names: of the rows.
        subject: rows of the subject, half-open.
        labels: columns of `to_frame` that tell the rows apart, `(n_rows,)` each.
        left: for each metric, effects of the trace that was asked, `(n_layers, n_rows)`, with heads
            `(n_layers, n_heads, n_rows)`; NaN where one of the two was not traced.
        right: likewise, of the other.
    """

    title: str
    mediator: str
    by: str
    names: Sequence[str]
    subject: Span
    labels: Mapping[str, Sequence[object]]
    left: Mapping[str, Array]
    right: Mapping[str, Array]

    def __repr__(self) -> str:
        difference = self.left[METRICS[0]] - self.right[METRICS[0]]
        most = float(np.nanmax(np.abs(difference)))
        return (
            f"<TraceDifference by {self.by}: {self.title}; at most {probability_text(most)} in "
            "probability>"
        )

    def _repr_html_(self) -> str:
        return image(self.plot(), self.title)

    def to_frame(self) -> pd.DataFrame:
        """Both effects and their difference, in every metric.

        Returns:
            A row for each metric, layer and position or role, and head of those that have: `metric,
            layer, position, role, token, other_token, left, right, difference`, or `metric, layer,
            role, left, right, difference`. Where one of the two was not traced there is no row.
        """
        frames = []
        for metric in METRICS:
            axes = np.indices(self.left[metric].shape, dtype=np.int16)
            row = axes[-1].ravel()
            columns: dict[str, object] = {"metric": metric, "layer": axes[0].ravel()}
            if has_heads(self.mediator):
                columns["head"] = axes[1].ravel()
            columns |= {name: np.asarray(values)[row] for name, values in self.labels.items()}
            left, right = self.left[metric].ravel(), self.right[metric].ravel()
            frames.append(
                pd.DataFrame(columns | {"left": left, "right": right, "difference": left - right})
            )
        frame = pd.concat(frames, ignore_index=True)
        frame["metric"] = pd.Categorical(frame["metric"], categories=METRICS)
        frame["role"] = pd.Categorical(frame["role"], categories=rows("rome"))
        found: pd.DataFrame = frame.dropna(subset=["difference"]).reset_index(drop=True)
        return found

    def plot(
        self,
        metric: str = METRICS[0],
        *,
        ax: "Axes | None" = None,
        palette: str = "shared",
        limits: tuple[float, float] | None = None,
        title: str | None = None,
    ) -> "Figure":
        """A heatmap of the difference: tokens or roles down, layers across.

        Args:
            metric: of the effects. Of heads it shows the largest difference of each layer and row.
            ax: where to draw, with a colour bar beside it; None makes a figure.
            palette: as in `Trace.plot`.
            limits: lowest and highest value of the colours, around 0.
            title: in place of what was subtracted from what; "" for none.

        Returns:
            A matplotlib figure; that of `ax`, if given.

        Raises:
            KtraceError: unknown metric or palette, limits without 0 between them, or `ax` is no
                axes.
        """
        require_metric(metric)
        difference = self.left[metric] - self.right[metric]
        if has_heads(self.mediator):
            difference = strongest_heads(difference, difference)
        figure = fact_heatmap(
            difference,
            Prompt(self.names, self.subject),
            key=self.mediator,
            title=self.title if title is None else title,
            look=chosen_look(metric, palette, limits, quantity="difference of IE"),
            axis=ax,
        )
        use_installed_fonts(figure)
        return figure if ax is not None else shown_by_jupyter(figure)


def difference_of(left: Side, right: Side, by: str | None) -> TraceDifference:
    """Left minus right; see `Trace.compare`.

    Raises:
        KtraceError: they have other layers, heads or positions, or nothing in common.
    """
    _require_same_axes(left, right)
    matching = tuple(left.roles) == tuple(right.roles)
    if by not in (None, *BY):
        raise KtraceError(f"by={by!r:.60} is unknown: choose from {', '.join(BY)}")
    if by == "position" and not matching:
        raise KtraceError(
            f"by='position': the prompts have other roles at their positions ({len(left.tokens)} "
            f"and {len(right.tokens)} tokens): compare by='role'"
        )
    found = _by_position(left, right) if matching and by != "role" else _by_role(left, right)
    if np.isnan(found.left[METRICS[0]] - found.right[METRICS[0]]).all():
        raise KtraceError("the two were traced at no position or role in common")
    return found


def _require_same_axes(left: Side, right: Side) -> None:
    heads = [has_heads(side.mediator) for side in (left, right)]
    if heads[0] != heads[1]:
        raise KtraceError(
            f"{left.mediator} and {right.mediator} cannot be compared: one acts on heads"
        )
    for axis, (one, other) in enumerate(zip(left.shape, right.shape, strict=True)):
        if one != other:
            what = ("layers", "heads")[axis]
            raise KtraceError(
                f"{left.told['model']} has {one} {what} and {right.told['model']} {other}: one of "
                "the first stands for none of the second; stage=compare sets such models side by "
                "side"
            )


def _by_position(left: Side, right: Side) -> TraceDifference:
    names = [
        one if one == other else f"{one.strip()} / {other.strip()}"
        for one, other in zip(left.tokens, right.tokens, strict=True)
    ]
    labels: dict[str, Sequence[object]] = {
        "position": np.arange(len(names), dtype=np.int16),  # type: ignore[dict-item]
        "role": left.roles,
        "token": left.tokens,
        "other_token": right.tokens,
    }
    return TraceDifference(
        _title(left, right),
        left.mediator,
        *("position", names, left.span, labels),
        dict(left.effects),
        dict(right.effects),
    )


def _by_role(left: Side, right: Side) -> TraceDifference:
    shared = [role for role in rows("rome") if role in left.roles and role in right.roles]
    n_subject = sum(role.endswith(" subject") for role in shared)
    return TraceDifference(
        _title(left, right),
        left.mediator,
        *("role", shared, Span(0, n_subject), {"role": shared}),
        {metric: left.by_role(metric, shared) for metric in METRICS},
        {metric: right.by_role(metric, shared) for metric in METRICS},
    )


def _title(left: Side, right: Side) -> str:
    """What is the same, then what differs."""
    differing = [name for name, text in left.told.items() if right.told[name] != text]
    # Another prompt or model has another subject or answer, which needs no saying.
    differing = [name for name in differing if name not in _WITHIN] or differing
    same = [left.told[name] for name in ("model", "mediator") if name not in differing]
    # Of one name: a model with and without an adapter, or after a step of training.
    sides = [", ".join(_named(side, name) for name in differing) for side in (left, right)]
    sides = sides if differing else ["first", "second"]
    return f"{', '.join(same)}: {' minus '.join(sides)}".removeprefix(": ")


def _named(side: Side, name: str) -> str:
    text = side.told[name]
    return repr(abridged(text, _MOST_LETTERS)) if name in _TEXTS else text


def require_metric(metric: str) -> None:
    """Refuse what is no metric."""
    if metric not in METRICS:
        raise KtraceError(f"metric={metric!r} is unknown: choose from {', '.join(METRICS)}")
