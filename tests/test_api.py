"""`ktrace.load_model` and `ktrace.trace`: the command line's numbers, from Python."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoTokenizer

import ktrace
from ktrace.config.compose import composed
from ktrace.lm.model import LanguageModel
from ktrace.pipeline.run import run
from tests.support.known_facts import PROMPTS
from tests.support.places import ROOT

PROMPT, SUBJECT = PROMPTS[0][0].format(PROMPTS[0][1]), PROMPTS[0][1]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LanguageModel:
    return ktrace.load_model(str(model_folder))


@pytest.fixture(scope="module")
def traced(model: LanguageModel) -> ktrace.Trace:
    return ktrace.trace(model, PROMPT, SUBJECT, "mlp", window=2, samples=3, seed=5)


def test_a_trace_is_what_the_command_line_stores(
    model_folder: Path, traced: ktrace.Trace, in_folder: Path
) -> None:
    overrides = [
        "model=auto",
        f"model.path={model_folder}",
        "dataset=prompt",
        f"dataset.prompt='{PROMPT}'",
        f"dataset.subject='{SUBJECT}'",
        "mediator=mlp",
        "mediator.window=2",
        "noise.samples=3",
        "noise.seed=5",
        "stage=restore",
    ]
    outcome = run(composed(overrides))
    stored = ktrace.load_effects(outcome.folder)
    assert outcome.folder.name == traced.noise == "gaussian-x3-n3-seed5"
    frame = traced.to_frame()
    pd.testing.assert_frame_equal(frame, stored, check_exact=True, check_categorical=False)
    assert list(frame.columns) == list(stored.columns)
    # The same folder with noise of another size would mix two corruptions.
    few = in_folder / "few.jsonl"
    few.write_text("".join((ROOT / "data" / "facts.jsonl").open().readlines()[:9]))
    other = composed([*overrides, f"dataset.noise_facts={few}"])
    with pytest.raises(ktrace.KtraceError, match=r"noise_facts.*\"n_facts\": 9"):
        run(other)


@pytest.mark.parametrize(
    ("mediator", "options"),
    [
        ("head", {"direction": "noise"}),
        ("head", {"positions": ["last", "first_subject"]}),
        ("knockout", {"window": 2}),
        ("knockout", {"query": "last_subject"}),
        ("attn", {"positions": ["last_subject"]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_parts_of_attention_are_what_the_command_line_stores(
    mediator: str,
    options: dict[str, Any],
    model_folder: Path,
    model: LanguageModel,
    in_folder: Path,
) -> None:
    told = {name: str(value).replace("'", "") for name, value in options.items()}
    overrides = [
        *("model=auto", f"model.path={model_folder}", f"mediator={mediator}", "stage=restore"),
        *("dataset=prompt", f"dataset.prompt='{PROMPT}'", f"dataset.subject='{SUBJECT}'"),
        *(f"mediator.{name}={value}" for name, value in told.items()),
        "noise.samples=2",
    ]
    stored = ktrace.load_effects(run(composed(overrides)).folder)
    trace = ktrace.trace(model, PROMPT, SUBJECT, mediator, samples=2, **options)
    frame = trace.to_frame()
    pd.testing.assert_frame_equal(frame, stored, check_exact=True, check_categorical=False)
    assert ("head" in frame) == (mediator == "head")
    assert set(frame["position"]) == set(trace.positions) < set(range(len(trace.tokens)))


def test_groups_of_sources_are_apart(model: LanguageModel) -> None:
    trace = ktrace.trace(model, PROMPT, SUBJECT, "knockout", window=2, samples=2)
    n_sources = len(trace.tokens) - 1
    assert trace.positions == tuple(range(n_sources))
    assert trace.p_restored.shape == (2, 3, n_sources)
    assert trace.source_groups == ("before subject", "subject", "after subject", "query itself")
    assert trace.of_groups["probability"].shape == (2, 3, 4)
    # A group of one source is that source.
    assert trace.span.stop == n_sources - 1
    after = trace.of_groups["probability"][..., 2]
    np.testing.assert_allclose(after, trace.p_restored[..., -1], rtol=0, atol=1e-6)
    assert np.abs(after - trace.p_clean).max() > 1e-3
    effect = (trace.p_restored - trace.p_clean).mean(axis=0)
    np.testing.assert_array_equal(trace.indirect_effect(), effect)


def drawn(figure: Figure, n_tokens: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Effects in the cells of a heatmap, `(n_layers, n_tokens)`; NaN where a cell is empty."""
    cells = np.ma.asarray(figure.axes[0].collections[0].get_array(), dtype=np.float64)
    return cells.filled(np.nan).reshape(n_tokens, -1).T


def test_the_figure_of_heads_has_the_strongest_or_one(model: LanguageModel) -> None:
    trace = ktrace.trace(model, PROMPT, SUBJECT, "head", samples=2)
    effects = trace.indirect_effect("logit")
    n_layers, n_heads, n_places = effects.shape
    assert (n_heads, n_places) == (4, 2)
    at = list(trace.positions)
    strongest = [
        [max(effects[layer, :, place], key=abs) for place in range(n_places)]
        for layer in range(n_layers)
    ]
    figure = trace.plot("logit")
    cells = drawn(figure, len(trace.tokens))
    np.testing.assert_allclose(cells[:, at], strongest)
    assert np.isnan(np.delete(cells, at, axis=1)).all()
    assert "head, the strongest: p(" in figure.get_suptitle()
    one = trace.plot("logit", head=2)
    np.testing.assert_allclose(drawn(one, len(trace.tokens))[:, at], effects[:, 2])
    assert "head 2: p(" in one.get_suptitle()
    for head in (-1, n_heads):
        with pytest.raises(ktrace.KtraceError, match=f"head={head} is out of range: 0 to 3"):
            trace.plot(head=head)


def test_the_figure_of_sources_has_no_query(model: LanguageModel, traced: ktrace.Trace) -> None:
    trace = ktrace.trace(model, PROMPT, SUBJECT, "knockout", samples=1)
    cells = drawn(trace.plot(), len(trace.tokens))
    np.testing.assert_allclose(cells[:, :-1], trace.indirect_effect())
    assert np.isnan(cells[:, -1]).all()
    with pytest.raises(ktrace.KtraceError, match="head=0 is out of range: mlp-w2 has none"):
        traced.plot(head=0)


def test_what_a_trace_holds(model: LanguageModel, traced: ktrace.Trace) -> None:
    n_positions = len(traced.input_ids)
    assert traced.mediator == "mlp-w2"
    assert traced.model == "random"
    assert traced.p_corrupted.shape == (3,)
    assert traced.p_restored.shape == (3, 3, n_positions)
    assert len(traced.tokens) == len(traced.roles) == n_positions
    start, stop = traced.span
    assert "".join(traced.tokens[start:stop]) == SUBJECT.replace(" ", "")
    assert traced.roles.index("last subject") == stop - 1
    probabilities = model.model(torch.tensor([traced.input_ids])).logits[0, -1].softmax(dim=-1)
    assert traced.answer_ids == (int(probabilities.argmax()),)
    assert traced.p_clean == pytest.approx(float(probabilities.max()), abs=1e-6)
    expected = (traced.p_restored - traced.p_corrupted[:, None, None]).mean(axis=0)
    np.testing.assert_array_equal(traced.indirect_effect(), expected)
    assert np.abs(expected).max() > 0.01


def test_noising_goes_from_clean_to_corrupted(model: LanguageModel) -> None:
    noised = ktrace.trace(model, PROMPT, SUBJECT, "hidden", direction="noise", samples=3, seed=5)
    assert noised.mediator == "hidden-noise"
    effect = (noised.p_restored - noised.p_clean).mean(axis=0)
    np.testing.assert_array_equal(noised.indirect_effect(), effect)
    assert (effect[:, : noised.span.start] == 0).all()
    assert effect[-1, -1] == pytest.approx((noised.p_corrupted - noised.p_clean).mean())
    assert effect.min() < -0.01
    with pytest.raises(
        ktrace.KtraceError, match=r"mediator\.direction=noise .* hidden_mlp_severed"
    ):
        ktrace.trace(model, PROMPT, SUBJECT, "hidden_mlp_severed", direction="noise")


def test_sigma_is_that_of_the_embedded_facts(
    model_folder: Path, model: LanguageModel, traced: ktrace.Trace
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lines = (ROOT / "data" / "facts.jsonl").read_text("utf-8").splitlines()
    subjects = [json.loads(line)["subject"] for line in lines]
    tokens = [t for s in subjects for t in tokenizer(s, add_special_tokens=False)["input_ids"]]
    expected = model.embedding_weight.double().numpy()[tokens].std(ddof=1)
    assert traced.sigma == pytest.approx(expected, rel=1e-6)
    assert traced.noise_level == pytest.approx(3 * expected, rel=1e-6)


def test_the_noise_is_measured_on_other_facts_where_they_are_given(
    model: LanguageModel, facts_file: Path, traced: ktrace.Trace
) -> None:
    other = ktrace.trace(model, PROMPT, SUBJECT, noise_facts=str(facts_file), samples=1)
    assert other.sigma != pytest.approx(traced.sigma, rel=1e-3)
    # An absolute level needs nothing to be measured on.
    levels = [
        ktrace.trace(model, PROMPT, SUBJECT, std=0.5, samples=2, noise_facts=facts).p_corrupted
        for facts in (None, str(facts_file))
    ]
    np.testing.assert_array_equal(*levels)


def test_subject_start_chooses_between_two(model: LanguageModel) -> None:
    prompt = "Lissom and Lissom stands in"
    first, second = (
        ktrace.trace(model, prompt, "Lissom", subject_start=start, samples=1) for start in (0, 11)
    )
    assert first.span.stop <= second.span.start
    with pytest.raises(ktrace.KtraceError, match=r"subject_start says which .* \(0 or 11\)"):
        ktrace.trace(model, prompt, "Lissom")


def test_an_answer_is_the_prediction_or_refused(model: LanguageModel, traced: ktrace.Trace) -> None:
    same = ktrace.trace(model, PROMPT, SUBJECT, answer=traced.answer.strip(), samples=1)
    assert same.answer_ids == traced.answer_ids
    with pytest.raises(ktrace.KtraceError, match="answer='Nowhere': another answer is predicted"):
        ktrace.trace(model, PROMPT, SUBJECT, answer="Nowhere")


def test_both_engines_and_whole_answers(model: LanguageModel, traced: ktrace.Trace) -> None:
    # What the model says next, as far as text can be read back into the same tokens.
    ids = list(traced.input_ids)
    for _ in range(2):
        ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
    answer = model.tokenizer.decode(ids[-2:]).strip()
    fast, plain = (
        ktrace.trace(model, PROMPT, SUBJECT, answer=answer, whole_answer=True, engine=engine)
        for engine in ("suffix", "reference")
    )
    assert fast.answer_ids == tuple(ids[-2:])
    assert 0 < fast.p_clean < traced.p_clean
    np.testing.assert_allclose(fast.p_restored, plain.p_restored, rtol=0, atol=1e-6)


def test_a_subject_that_the_tokenizer_drops(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktrace.lm.tokens._own_characters", lambda *given: [(0, 0)] * len(given[1]))
    with pytest.raises(ktrace.KtraceError, match="keeps nothing of the subject 'Cape Morrow' in"):
        ktrace.trace(model, PROMPT, SUBJECT)


def test_a_replacement_needs_no_relation(model: LanguageModel, facts_file: Path) -> None:
    noise = {"kind": "token_replacement", "noise_facts": str(facts_file)}
    replaced = ktrace.trace(model, PROMPT, SUBJECT, **noise)
    assert replaced.noise == "token_replacement-n1-seed1"
    assert np.isnan(replaced.noise_level)
    assert (replaced.p_corrupted != replaced.p_clean).all()


def test_the_foil_is_the_answer_of_the_subject_that_stands_in(
    model: LanguageModel, traced: ktrace.Trace, tmp_path: Path
) -> None:
    words = [w for w in ("Captain", "Harvest", "plays", "river") if w != traced.answer.strip()]
    answers = dict(zip(("Cape Lissom", "Cape Tallow", "Cape Ferris"), words, strict=False))
    facts = tmp_path / "partners.jsonl"
    with facts.open("w") as stream:
        for number, (subject, answer) in enumerate(answers.items()):
            fact = {"known_id": number, "prompt": f"Of {subject}", "subject": subject}
            print(json.dumps({**fact, "attribute": answer}), file=stream)
    noise = {"kind": "token_replacement", "noise_facts": str(facts), "samples": 3}
    replaced = ktrace.trace(model, PROMPT, SUBJECT, **noise)
    assert {foil.strip() for foil in replaced.foils} == set(answers.values())
    # Each sample is measured against its own, the clean run too: it comes back as a whole.
    clean = replaced.clean["logit_difference"]
    assert len(set(clean)) == 3
    np.testing.assert_array_equal(replaced.restored["logit_difference"][:, -1, -1], clean)
    frame = replaced.to_frame().query("metric == 'logit_difference'")
    assert frame.groupby("sample")["clean"].unique().str[0].tolist() == pytest.approx(clean)
    # The corrupted run's favourite is another one, and one for all samples.
    likely = ktrace.trace(model, PROMPT, SUBJECT, **noise, foil="corrupted")
    assert likely.noise == "token_replacement-foil-corrupted-n3-seed1"
    assert len(set(likely.foils)) == 1
    np.testing.assert_array_equal(likely.p_restored, replaced.p_restored)


def test_a_partner_has_another_answer_than_the_prediction(
    model: LanguageModel, traced: ktrace.Trace, tmp_path: Path
) -> None:
    """A prompt without an answer: what is scored is the prediction, whatever its text."""
    facts = tmp_path / "partners.jsonl"
    noise = {"kind": "token_replacement", "noise_facts": str(facts)}
    fact = {"known_id": 0, "prompt": "Of Cape Lissom", "subject": "Cape Lissom"}

    def partner(answer: str) -> None:
        facts.write_text(json.dumps({**fact, "attribute": answer}))

    partner("Nowhere")
    assert ktrace.trace(model, PROMPT, SUBJECT, **noise).noise == "token_replacement-n1-seed1"
    with pytest.raises(ktrace.KtraceError, match=r"fewer than noise\.samples=2"):
        ktrace.trace(model, PROMPT, SUBJECT, **noise, samples=2)
    for answer in (traced.answer.strip(), f"{traced.answer.strip()} and so on"):
        partner(answer)
        with pytest.raises(ktrace.KtraceError, match="has another answer"):
            ktrace.trace(model, PROMPT, SUBJECT, **noise)


def test_the_figure_has_a_row_for_each_token(traced: ktrace.Trace) -> None:
    figure = traced.plot("logit")
    axis, bar = figure.axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    start, stop = traced.span
    assert [label.endswith("*") for label in labels] == [
        start <= position < stop for position in range(len(labels))
    ]
    assert [label.rstrip("*") for label in labels] == list(traced.tokens)
    drawn = axis.collections[0].get_array()
    np.testing.assert_allclose(
        np.asarray(drawn).reshape(len(labels), -1), traced.indirect_effect("logit").T
    )
    assert bar.get_ylabel() == "IE (logit)"
    title = figure.get_suptitle()
    assert "random, mlp-w2: " in title
    assert f"gaussian-x3-n3-seed5, σ = {traced.sigma:.3g} over 408 facts" in title
    with pytest.raises(ktrace.KtraceError, match="metric='loss' is unknown: choose from probab"):
        traced.plot("loss")


def test_figures_stand_side_by_side_on_one_scale(traced: ktrace.Trace) -> None:
    whole = Figure()
    left, right = whole.subplots(1, 2)
    assert traced.plot(ax=left, limits=(-0.5, 1)) is whole
    traced.plot("kl", ax=right, limits=(-0.5, 1), palette="rome")
    meshes = [axis.collections[0] for axis in (left, right)]
    assert [(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes] == [(-0.5, 1), (-0.5, 1)]
    # White is no effect; of a divergence, what is below it helps, in the greens of an MLP.
    helping = [meshes[0].cmap(meshes[0].norm(0.4))[:3], meshes[1].cmap(meshes[1].norm(-0.4))[:3]]
    assert [int(np.argmax(colour)) for colour in helping] == [2, 1]
    for mesh in meshes:
        assert min(mesh.cmap(mesh.norm(0.0))[:3]) > 0.98
    with pytest.raises(ktrace.KtraceError, match="palette='viridis' is unknown: choose from shar"):
        traced.plot(palette="viridis")
    with pytest.raises(ktrace.KtraceError, match=r"limits=\(0.1, 1\) must have 0 between them"):
        traced.plot(limits=(0.1, 1))


def test_module_paths_of_a_model_with_hidden_states_alone(model_folder: Path) -> None:
    paths = {"embedding": "model.embed_tokens", "block": "model.layers.[LAYER_NUM]"}
    model = ktrace.load_model(str(model_folder), modules=paths)
    assert ktrace.trace(model, PROMPT, SUBJECT, samples=1).p_restored.shape[0] == 1
    with pytest.raises(ktrace.KtraceError, match="this model has no site 'mlp'"):
        ktrace.trace(model, PROMPT, SUBJECT, mediator="mlp")


def test_presets_bring_their_settings() -> None:
    model = ktrace.load_model("tiny", dtype="float64", window=4)
    assert (model.name, model.window, model.model.dtype) == ("tiny", 4, torch.float64)
    assert ktrace.load_model("tiny").window == 3  # the preset's own


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        ("./nowhere", {}, "model.path=./nowhere is not a folder"),
        ("tiny", {"dtyp": 1}, "unknown key model.dtyp (did you mean dtype?); keys here: name, pa"),
        ("tiny", {"dtype": "float8"}, "model.dtype: Invalid value 'float8', expected one of [auto"),
        (
            "tiny",
            {"device": "cpu", "device_map": "auto"},
            "model.device='cpu' and model.device_map",
        ),
        ("tiny", {"modules": {"block": "x"}}, "model.modules lacks embedding: give embedding and "),
    ],
)
def test_a_model_that_is_refused(path: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.load_model(path, **overrides)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subject": "Big Ben"}, "prompt: subject 'Big Ben' is not in the prompt"),
        ({"mediator": "hiden"}, "mediator='hiden' is unknown (did you mean hidden?): choose from "),
        ({"mediator": "all"}, "mediator='all' stands for several, which ktrace.trace_many takes: "),
        ({"engine": "fast"}, "engine='fast' is unknown: choose from reference, suffix"),
        ({"noise": "gausian"}, "noise='gausian' is unknown (did you mean gaussian?): choose from "),
        ({"sigma": 3}, "trace has no argument 'sigma': choose from model, prompt, subject, mediat"),
        ({"multiple": "big"}, "noise.multiple: Value 'big' of type 'str' could not be converted"),
        ({"kind": "zero", "samples": 3}, "noise.samples=3 has no meaning for noise.kind=zero"),
        ({"kind": "token_replacement", "subject": "The"}, "noise.kind=token_replacement cannot co"),
        (
            {"positions": ["end"]},
            "mediator.positions: 'end' is no role: choose from first_subject,",
        ),
        ({"positions": ["first_subsequent"], "prompt": SUBJECT}, "mediator.positions=first_subseq"),
        ({"mediator": "knockout", "query": "further"}, "mediator.query: 'further' is no role: cho"),
        ({"mediator": "knockout", "positions": "all"}, "mediator.positions=all has no meaning for"),
        ({"mediator": "knockout", "direction": "noise"}, "mediator.direction=noise has no meaning"),
        ({"direction": "both"}, "mediator.direction=both is no direction: choose from denoise, no"),
        ({"window": 0}, "mediator.window=0 is out of range: at least 1"),
        ({"noise_facts": "none.csv"}, "dataset.noise_facts=none.csv is not a file"),
        ({"model": "tiny"}, "model='tiny' is no model with a tokenizer: give what ktrace.load_mo"),
    ],
)
def test_a_trace_that_is_refused(
    model: LanguageModel, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ktrace.KtraceError) as raised:
        ktrace.trace(**{"model": model, "prompt": PROMPT, "subject": SUBJECT, **arguments})
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
