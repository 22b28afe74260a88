"""One prompt, traced: its scores, as a frame, as a heatmap and beside another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ktrace.analysis.case import TracedCase
from ktrace.analysis.figures.fonts import use_installed_fonts
from ktrace.analysis.figures.heatmaps import fact_heatmap
from ktrace.analysis.figures.look import Prompt, chosen_look, probability_text
from ktrace.analysis.figures.style import shown_by_jupyter
from ktrace.analysis.notebook import image, paragraph, quoted
from ktrace.analysis.report import embedded_heatmap
from ktrace.analysis.strongest import strongest_heads
from ktrace.analysis.tokens import abridged
from ktrace.api.difference import Side, TraceDifference, difference_of, require_metric
from ktrace.errors import KtraceError
from ktrace.facts import Span
from ktrace.terms import METRICS, changes_clean_run, has_heads
from ktrace.tracing.engine import Scores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """One prompt traced with one mediator; `==` asks whether it is the same object.

    Axes are (sample, layer, position), with heads (sample, layer, head, position). Scores are by
    metric: `probability` (unitless, in [0, 1]), `log_probability`, `logit`, `logit_difference`,
    `kl` (nats).

    >>> model = ktrace.load_model("tiny")
    >>> trace = ktrace.trace(model, "The seed drill was invented by", "seed drill")
    >>> trace.answer, trace.tokens[trace.span.start : trace.span.stop]
    (' Jeth', ('seed', 'drill'))
    >>> trace.indirect_effect().shape  # layers, positions
    (6, 7)

    Attributes:
        model: name of the model.
        prompt: the text.
        subject: the part of it that was corrupted.
        answer: what is scored, as text: one token unless whole answers were asked for.
        answer_ids: its token ids.
        foils: what `logit_difference` compares with, as text, one for each sample.
        tokens: the prompt's tokens as text, `(n_positions,)`.
        input_ids: their ids.
        span: positions of the subject, half-open.
        roles: of each position in the scheme `rome`; None before the subject.
        mediator: with its window, such as `mlp-w10`.
        noise: kind, level, samples and seed, such as `gaussian-x3-n10-seed1`.
        sigma: standard deviation of the embeddings of the subjects that the noise was measured on.
        sigma_facts: how many facts these subjects are of.
        noise_level: what draws were multiplied with; NaN for kinds without a level.
        clean: scores of the clean run, `(n_samples,)`: what each sample is compared with. All
            alike, but for `logit_difference` where each sample has its own foil.
        corrupted: scores of the corrupted run, `(n_samples,)`.
        restored: scores with a state restored (or noised), or an edge cut, `(n_samples, n_layers,
            n_positions)`; of heads `(n_samples, n_layers, n_heads, n_positions)`.
        positions: that the last axis of `restored` is of, in the prompt: all, those of the roles
            that were asked for, or sources of cut edges.
        source_groups: of a knockout, names of sources whose edges were cut together.
        of_groups: scores of these, `(n_samples, n_layers, n_groups)`.
        also: other right answers, as text: probabilities are of all of them together.
        corrupted_prompt: what the corrupted run read, where that was another prompt.
        known_id: the fact's own number in `to_frame`.
    """

    model: str
    prompt: str
    subject: str
    answer: str
    answer_ids: tuple[int, ...]
    foils: tuple[str, ...]
    tokens: tuple[str, ...]
    input_ids: tuple[int, ...]
    span: Span
    roles: tuple[str | None, ...]
    mediator: str
    noise: str
    sigma: float
    sigma_facts: int
    noise_level: float
    clean: Scores
    corrupted: Scores
    restored: Scores
    positions: tuple[int, ...]
    source_groups: tuple[str, ...]
    of_groups: Scores
    also: tuple[str, ...] = ()
    corrupted_prompt: str = ""
    known_id: int = 0

    def __repr__(self) -> str:
        return (
            f"<Trace of {self.model} by {self.mediator}: {abridged(self.prompt)!r} gives "
            f"{self.answer!r} with p {self._told_scores()}>"
        )

    def _repr_html_(self) -> str:
        told = (
            f"{quoted(self.prompt)} gives {quoted(self.answer)}; corrupted was "
            f"{quoted(self.subject or self.corrupted_prompt)}."
        )
        return paragraph(told) + image(self.plot(), f"{self.model}, {self.mediator}")

    @property
    def p_clean(self) -> float:
        """Probability of the answer in the clean run."""
        return float(self.clean["probability"][0])

    @property
    def p_corrupted(self) -> npt.NDArray[np.float64]:
        """Probability of the answer in the corrupted run, `(n_samples,)`."""
        return self.corrupted["probability"]

    @property
    def p_restored(self) -> npt.NDArray[np.float64]:
        """Its probability with a state restored, or an edge cut, in the shape of `restored`."""
        return self.restored["probability"]

    def indirect_effect(self, metric: str = "probability") -> npt.NDArray[np.float64]:
        """Restored minus corrupted (noised or cut: minus clean), the mean over samples.

        Args:
            metric: of the scores.

        Returns:
            `(n_layers, n_positions)`, of heads `(n_layers, n_heads, n_positions)`.

        Raises:
            KtraceError: unknown metric.
        """
        require_metric(metric)
        base = self.clean if changes_clean_run(self.mediator) else self.corrupted
        scores = self.restored[metric]
        effect = scores - base[metric].reshape(-1, *[1] * (scores.ndim - 1))
        return np.asarray(effect.mean(axis=0))

    def to_frame(self) -> "pd.DataFrame":
        """Every score, in the columns of `ktrace.load_effects`.

        Frames of several prompts can be put together: `ktrace.average` tells facts apart by
        `known_id` and `prompt`. Where a `groupby` is to do so by `known_id` alone, give each prompt
        one of its own.

        >>> model = ktrace.load_model("tiny")
        >>> trace = ktrace.trace(model, "The seed drill was invented by", "seed drill")
        >>> frame = trace.to_frame()
        >>> list(frame.columns[:7])
        ['model', 'known_id', 'mediator', 'metric', 'sample', 'layer', 'position']

        Returns:
            A row for each metric, sample, layer and position, and head of those that have.
        """
        return self._case().frame()

    def to_html(self, metric: str = "probability", *, palette: str = "shared") -> str:
        """The report's interactive heatmap of this prompt, to put into any page.

        It needs no network, and several on one page keep out of each other's way, as each is a
        frame of its own. `IPython.display.HTML(trace.to_html())` shows it in a notebook.

        >>> model = ktrace.load_model("tiny")
        >>> trace = ktrace.trace(model, "The seed drill was invented by", "seed drill")
        >>> trace.to_html(metric="logit")[:19]
        '<div><iframe title='

        Args:
            metric: that is shown first; the others can be chosen.
            palette: as in `plot`.

        Returns:
            An element of HTML, some 100 kB. Of heads it shows the strongest of each layer and
            position.

        Raises:
            KtraceError: unknown metric or palette.
        """
        require_metric(metric)
        look = chosen_look(metric, palette, None)
        return embedded_heatmap(self._case(), look)

    def compare(self, other: "Trace", by: str | None = None) -> TraceDifference:
        """The effects of this trace minus those of another: `.to_frame()`, `.plot()`.

        Of one prompt by two mediators, noises or models, or of two prompts. Noise samples are
        averaged first.

        >>> model = ktrace.load_model("tiny")
        >>> prompt, subject = "The seed drill was invented by", "seed drill"
        >>> whole = ktrace.trace(model, prompt, subject)
        >>> severed = ktrace.trace(model, prompt, subject, "hidden_mlp_severed")
        >>> apart = whole.compare(severed)
        >>> apart.by, list(apart.to_frame().columns[-3:])
        ('position', ['left', 'right', 'difference'])

        Args:
            other: of a model with as many layers.
            by: `position`, which takes prompts of the same roles at the same positions; or `role`,
                where positions of a role are averaged first. None for positions where they match,
                else for roles.

        Raises:
            KtraceError: what cannot be compared, and why.
        """
        if not isinstance(other, Trace):
            raise KtraceError(f"other={other!r:.60} is no trace: give what ktrace.trace returns")
        return difference_of(self._side(), other._side(), by)

    def plot(
        self,
        metric: str = "probability",
        *,
        head: int | None = None,
        ax: "Axes | None" = None,
        palette: str = "shared",
        limits: tuple[float, float] | None = None,
        title: str | None = None,
    ) -> "Figure":
        """A heatmap of the indirect effect: tokens down, layers across, subject marked with `*`.

        Positions that were not traced stay grey; of a knockout, tokens are sources.

        >>> model = ktrace.load_model("tiny")
        >>> trace = ktrace.trace(model, "The seed drill was invented by", "seed drill")
        >>> trace.plot(metric="logit").savefig("drill.png")

        Args:
            metric: of the effect.
            head: which, of a mediator with heads; None for the one with the largest effect, in each
                layer and position.
            ax: where to draw, with a colour bar beside it; None makes a figure. Figures of several
                axes need `layout="constrained"`, or titles and labels overlap.
            palette: `shared`, or `rome` for the colours of Meng et al. 2022.
            limits: lowest and highest value of the colours, around 0, so that several plots
                compare; None for those of this plot.
            title: in place of the model, the mediator, probabilities and the noise; "" for none.

        Returns:
            A matplotlib figure, which Jupyter shows and `.savefig(path)` writes; that of `ax`, if
            given.

        Raises:
            KtraceError: unknown metric, palette or head, limits without 0 between them, or `ax` is
                no axes.
        """
        figure = fact_heatmap(
            self._at_tokens(metric, head),
            Prompt(self.tokens, self.span),
            key=self.mediator,
            title=self._title(head) if title is None else title,
            look=chosen_look(metric, palette, limits),
            axis=ax,
        )
        use_installed_fonts(figure)
        return figure if ax is not None else shown_by_jupyter(figure)

    def _told_scores(self) -> str:
        clean, corrupted = map(probability_text, (self.p_clean, float(self.p_corrupted.mean())))
        return f"{clean} clean, {corrupted} corrupted"

    def _title(self, head: int | None) -> str:
        measured = f", σ = {self.sigma:.3g} over {self.sigma_facts} facts"
        named = "" if not has_heads(self.mediator) else ", the strongest"
        named = named if head is None else f" {head}"
        return (
            f"{self.model}, {self.mediator}{named}: p({self.answer.strip()!r}) "
            f"{self._told_scores()}\n{self.noise}{measured if self.sigma_facts else ''}"
        )

    def _side(self) -> Side:
        names = ("model", "mediator", "noise", "prompt", "subject", "answer")
        told = {name: str(getattr(self, name)) for name in names}
        at_tokens = {}
        for metric in METRICS:
            effects = self.indirect_effect(metric)
            found = np.full((*effects.shape[:-1], len(self.tokens)), np.nan)
            found[..., list(self.positions)] = effects
            at_tokens[metric] = found
        return Side(told, self.mediator, self.tokens, self.roles, self.span, at_tokens)

    def _case(self) -> TracedCase:
        return TracedCase(
            model=self.model,
            mediator=self.mediator,
            known_id=self.known_id,
            prompt=self.prompt,
            subject=self.subject,
            answers=(self.answer, *self.also),
            tokens=self.tokens,
            roles=self.roles,
            span=self.span,
            positions=self.positions,
            clean=self.clean,
            corrupted=self.corrupted,
            restored=self.restored,
        )

    def _at_tokens(self, metric: str, head: int | None) -> npt.NDArray[np.float64]:
        """Effects of one head in each layer, `(n_layers, n_tokens)`; NaN where none was traced."""
        effects = self.indirect_effect(metric)
        n_heads = effects.shape[1] if has_heads(self.mediator) else 0
        if head is not None and not 0 <= head < n_heads:
            have = f"0 to {n_heads - 1}" if n_heads else f"{self.mediator} has none"
            raise KtraceError(f"head={head} is out of range: {have}")
        if head is not None:
            effects = effects[:, head]
        elif n_heads:
            effects = strongest_heads(effects, effects)
        found = np.full((len(effects), len(self.tokens)), np.nan)
        found[:, list(self.positions)] = effects
        return found
