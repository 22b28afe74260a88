"""What notebooks and other pages show of a trace, and of two of them."""

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import ktrace
from ktrace.lm.model import LanguageModel
from tests.support.known_facts import PROMPTS

PROMPT, SUBJECT = PROMPTS[0][0].format(PROMPTS[0][1]), PROMPTS[0][1]
OTHER, OTHER_SUBJECT = PROMPTS[2][0].format(PROMPTS[2][1]), PROMPTS[2][1]
HOSTILE = "<script>alert('x')</script>\n\"&"


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LanguageModel:
    return ktrace.load_model(str(model_folder))


@pytest.fixture(scope="module")
def hidden(model: LanguageModel) -> ktrace.Trace:
    return ktrace.trace(model, PROMPT, SUBJECT, samples=3)


@pytest.fixture(scope="module")
def mlp(model: LanguageModel) -> ktrace.Trace:
    return ktrace.trace(model, PROMPT, SUBJECT, "mlp", window=2, samples=2)


@pytest.fixture(scope="module")
def other(model: LanguageModel) -> ktrace.Trace:
    """Of another prompt, of more tokens."""
    return ktrace.trace(model, OTHER, OTHER_SUBJECT, samples=2)


@pytest.fixture(scope="module")
def heads(model: LanguageModel) -> ktrace.Trace:
    return ktrace.trace(model, PROMPT, SUBJECT, "head", samples=2)


def test_a_trace_is_told_in_one_line(hidden: ktrace.Trace) -> None:
    for trace in (hidden, replace(hidden, prompt="A\nB " * 999)):
        told = repr(trace)
        assert "\n" not in told
        assert len(told) < 250
        for said in ("random by hidden", repr(hidden.answer), f"{hidden.p_clean:.3f} clean"):
            assert said in told


def test_a_notebook_shows_text_that_cannot_act_and_the_heatmap(hidden: ktrace.Trace) -> None:
    hostile = replace(hidden, prompt=HOSTILE, subject=HOSTILE, answer=HOSTILE, model="<b>")
    shown = hostile._repr_html_()
    assert "<script" not in shown
    assert "<b>" not in shown
    assert shown.count("&lt;script&gt;") == 3
    assert re.search(r'<img alt="&lt;b&gt;, hidden" src="data:image/png;base64,iVBOR', shown)


def test_numbers_and_columns_of_facts_put_together(
    hidden: ktrace.Trace, mlp: ktrace.Trace, other: ktrace.Trace
) -> None:
    both = pd.concat([hidden.to_frame(), other.to_frame()])
    assert set(both["known_id"]) == {0}
    assert set(ktrace.average(both, by=["layer"])["n_facts"]) == {2}
    numbered = pd.concat([hidden.to_frame(), replace(other, known_id=7).to_frame()])
    assert numbered["known_id"].dtype == np.int64
    assert numbered["known_id"].nunique() == 2
    pd.testing.assert_frame_equal(ktrace.average(numbered), ktrace.average(both))
    # The same prompt by another mediator is the same fact.
    mediators = pd.concat([hidden.to_frame(), mlp.to_frame()], ignore_index=True)
    assert set(ktrace.average(mediators)["n_facts"]) == {1}


def test_traces_are_found_in_lists_and_sets(hidden: ktrace.Trace, mlp: ktrace.Trace) -> None:
    """As themselves: their numbers are arrays, which have no single answer to `==`."""
    apart = hidden.compare(mlp)
    assert [hidden, mlp].index(mlp) == 1
    assert {hidden, mlp, apart} >= {mlp, apart}
    assert hidden != replace(hidden)


def cells(figure: Figure, n_rows: int) -> np.ndarray:
    found = np.ma.asarray(figure.axes[0].collections[0].get_array(), dtype=np.float64)
    return found.filled(np.nan).reshape(n_rows, -1).T


def test_two_mediators_are_compared_at_each_position(
    hidden: ktrace.Trace, mlp: ktrace.Trace
) -> None:
    apart = hidden.compare(mlp)
    frame = apart.to_frame()
    assert list(frame.columns) == [
        *("metric", "layer", "position", "role", "token", "other_token"),
        *("left", "right", "difference"),
    ]
    for metric in ("probability", "kl"):
        own = frame[frame["metric"] == metric].pivot(index="layer", columns="position")
        np.testing.assert_array_equal(own["left"], hidden.indirect_effect(metric))
        np.testing.assert_array_equal(own["right"], mlp.indirect_effect(metric))
        expected = hidden.indirect_effect(metric) - mlp.indirect_effect(metric)
        np.testing.assert_array_equal(own["difference"], expected)
        figure = apart.plot(metric)
        np.testing.assert_allclose(cells(figure, len(hidden.tokens)), expected)
    assert "random: hidden" in repr(apart)
    assert "minus mlp-w2" in repr(apart)
    assert figure.axes[1].get_ylabel().split() == [
        *("difference", "of", "IE", "(KL", "divergence,", "nats;", "negative", "helps)"),
    ]
    assert "data:image/png" in apart._repr_html_()
    reverse = mlp.compare(hidden).to_frame()
    np.testing.assert_array_equal(reverse["difference"], -frame["difference"])


def test_prompts_of_other_lengths_are_compared_by_role(
    hidden: ktrace.Trace, other: ktrace.Trace
) -> None:
    # Two positions of a role, which no prompt here has in both.
    roles = ["last subject" if role == "first subject" else role for role in hidden.roles]
    hidden = replace(hidden, roles=tuple(roles))
    apart = hidden.compare(other)
    assert apart.by == "role"
    frame = apart.to_frame()
    effects = hidden.indirect_effect("logit")
    shared = set(hidden.roles) & set(other.roles) - {None}
    assert max(map(hidden.roles.count, shared)) > 1
    for role in shared:
        own = frame[(frame["metric"] == "logit") & (frame["role"] == role)]
        at = [position for position, one in enumerate(hidden.roles) if one == role]
        np.testing.assert_allclose(own["left"], effects[:, at].mean(axis=1), rtol=1e-9)
    assert set(frame["role"]) == shared
    assert len(apart.names) == len(shared)
    with pytest.raises(ktrace.KtraceError, match=r"by='position': the prompts have other roles"):
        hidden.compare(other, by="position")
    assert repr(PROMPT[:10])[:-1] in repr(apart)


def test_a_difference_says_what_differs(hidden: ktrace.Trace, other: ktrace.Trace) -> None:
    adapted = replace(hidden, restored={m: 2 * v for m, v in hidden.restored.items()})
    assert hidden.compare(adapted).title == "random, hidden: first minus second"
    answered = replace(hidden, answer=" Rome")
    assert hidden.compare(answered).title == f"random, hidden: {hidden.answer!r} minus ' Rome'"
    # What goes with another prompt is not said beside it.
    assert repr(other.answer) not in hidden.compare(other).title
    assert OTHER_SUBJECT not in hidden.compare(replace(other, prompt="!")).title


def test_heads_are_compared_one_by_one(heads: ktrace.Trace, hidden: ktrace.Trace) -> None:
    noised = replace(heads, restored={m: 2 * v for m, v in heads.restored.items()})
    apart = heads.compare(noised)
    frame = apart.to_frame()
    assert set(frame["head"]) == set(range(4))
    assert set(frame["position"]) == set(heads.positions)
    difference = heads.indirect_effect() - noised.indirect_effect()
    own = frame[frame["metric"] == "probability"]
    np.testing.assert_allclose(own["difference"], difference.ravel())
    drawn = cells(apart.plot(), len(heads.tokens))
    strongest = [max(difference[1, :, 1], key=abs)]
    np.testing.assert_allclose(drawn[1, heads.positions[1]], strongest)


def test_what_cannot_be_compared_is_refused(
    model: LanguageModel, hidden: ktrace.Trace, heads: ktrace.Trace
) -> None:
    def cut(trace: ktrace.Trace) -> ktrace.Trace:
        return replace(trace, restored={m: v[:, :2] for m, v in trace.restored.items()})

    last, subject = (
        ktrace.trace(model, PROMPT, SUBJECT, positions=[role], samples=1)
        for role in ("last", "last_subject")
    )
    for left, right, options, message in (
        (hidden, heads, {}, "hidden and head cannot be compared: one acts on heads"),
        (hidden, cut(hidden), {}, "random has 3 layers and random 2: one of the first stands"),
        (hidden, hidden, {"by": "token"}, "by='token' is unknown: choose from position, role"),
        (hidden, "hidden", {}, "other='hidden' is no trace: give what ktrace.trace returns"),
        (last, subject, {}, "the two were traced at no position or role in common"),
    ):
        with pytest.raises(ktrace.KtraceError, match=f"^{message}"):
            left.compare(right, **options)
    with pytest.raises(ktrace.KtraceError, match="metric='loss' is unknown"):
        hidden.compare(hidden).plot("loss")


def test_figures_stand_where_they_are_told(
    hidden: ktrace.Trace, mlp: ktrace.Trace, heads: ktrace.Trace
) -> None:
    whole = Figure(layout="constrained")
    above, below = whole.subfigures(2, 1)
    for axis, shown in zip(
        (*above.subplots(1, 2), *below.subplots(1, 2)),
        (hidden, heads, hidden.compare(mlp), mlp),
        strict=True,
    ):
        before = len(axis.figure.axes)
        assert shown.plot(ax=axis) is whole
        assert len(axis.collections) == 1
        assert len(axis.figure.axes) == before + 1, "a colour bar beside it"
    assert len(whole.axes) == 8
    whole.canvas.draw()


def test_titles_are_chosen_and_axes_are_axes(hidden: ktrace.Trace, mlp: ktrace.Trace) -> None:
    for shown in (hidden, hidden.compare(mlp)):
        assert "random" in shown.plot().get_suptitle()
        for title in ("", "of mine"):
            assert shown.plot(title=title).get_suptitle() == title
        with pytest.raises(ktrace.KtraceError, match=r"^ax=ndarray is no axes of matplotlib: give"):
            shown.plot(ax=Figure().subplots(1, 2))


def test_small_probabilities_keep_their_digits(hidden: ktrace.Trace) -> None:
    small = replace(
        hidden,
        clean={m: 0 * v + 4.9e-5 for m, v in hidden.clean.items()},
        corrupted={m: 0 * v + 0.00123 for m, v in hidden.corrupted.items()},
        restored={m: 0 * v + 0.00127 for m, v in hidden.restored.items()},
    )
    told = "4.9e-05 clean, 0.0012 corrupted"
    assert told in repr(small)
    assert told in " ".join(small.plot().get_suptitle().split())
    none = replace(small, restored={m: 0 * v + 0.00123 for m, v in small.restored.items()})
    assert "at most 4e-05 in" in repr(small.compare(none))
    assert "at most 0.000 in" in repr(small.compare(small))


def test_the_embedded_heatmap_is_one_element_of_plain_letters(hidden: ktrace.Trace) -> None:
    hostile = replace(hidden, prompt=HOSTILE, subject="", answer=HOSTILE, model='"><script>')
    element = hostile.to_html()
    assert element.isascii()
    assert re.fullmatch(r"<div><iframe [^<>]*></iframe></div>", element)
    assert 'sandbox="allow-scripts allow-downloads"' in element
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', element)[1])
    assert page.count("<script") == page.count("</script>") == 2 + 5, "its own, data and 5 metrics"
    assert "alert" in page
    assert "<script>alert" not in page
    for metric, palette in (("loss", "shared"), ("logit", "jet")):
        with pytest.raises(ktrace.KtraceError, match="is unknown: choose from"):
            hidden.to_html(metric, palette=palette)
