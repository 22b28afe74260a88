"""Every shipped config composes into a checked RunConfig; what no type can refuse is refused."""

import re
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from ktrace.config import (
    Dtype,
    EngineName,
    KeptStates,
    ModulesConfig,
    NoiseConfig,
    RoleScheme,
    RunConfig,
    Stage,
)
from ktrace.config.activations import kept_states
from ktrace.config.checks import check
from ktrace.config.compose import composed as compose_run
from ktrace.errors import KtraceError
from ktrace.terms import SITES, MediatorKey
from ktrace.tracing.mediators import make_mediators
from tests.support.places import ROOT

CONF = ROOT / "conf"
GROUPS = ("model", "mediator", "noise", "dataset", "engine", "logger", "experiment")
# What a user must give beside the choice itself.
NEEDED = {
    ("model", "auto"): ["model.path=some/where/my-model"],
    ("dataset", "file"): ["dataset.path=/data/my.facts.jsonl"],
    ("dataset", "hub"): ["dataset.hub=owner/cities"],
    ("dataset", "prompt"): ["dataset.prompt='Rome is in'", "dataset.subject=Rome"],
}
MEDIATORS = ["hidden", "hidden_attn_severed", "hidden_mlp_severed", "mlp", "attn"]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> RunConfig:
    return compose_run(overrides)


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_composes(group: str, choice: str) -> None:
    needed = NEEDED.get((group, choice), [])
    run = composed(f"{group}={choice}", *needed)
    # Of the schema all the way down: no DictConfig travels past the door.
    assert isinstance(run.noise, NoiseConfig)
    assert isinstance(run.model.dtype, Dtype)
    assert type(run.mediator.names) is list
    assert run.model.path
    assert run.dataset.path or run.dataset.hub or run.dataset.prompt
    if group in ("model", "dataset") and not needed:
        assert getattr(run, group).name == choice  # the store's folder says what it holds


def test_no_group_is_forgotten_here() -> None:
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert folders == {*GROUPS, "hydra"}


def test_defaults() -> None:
    run = composed()
    assert (run.model.name, run.model.path) == ("tiny", str(ROOT / "data" / "tiny"))
    assert (run.dataset.name, run.dataset.path) == ("facts", str(ROOT / "data" / "facts.jsonl"))
    assert run.dataset.limit is None
    assert run.mediator.names == ["hidden"]
    assert (run.noise.multiple, run.noise.std, run.noise.samples, run.noise.seed) == (
        None,
        None,
        10,
        1,
    )
    assert run.roles.scheme is RoleScheme.rome
    assert run.stage is Stage.all
    assert run.output_dir == "outputs"
    assert vars(run.activations) == {
        "clean": [*SITES],
        "corrupted": [],
        "layers": None,
        "positions": "all",
        "samples": None,
    }
    assert run.model.modules is None


@pytest.mark.parametrize("mediator", MEDIATORS)
def test_a_mediator_is_chosen_by_its_name(mediator: str) -> None:
    assert composed(f"mediator={mediator}").mediator.names == [mediator]


def test_all_mediators() -> None:
    assert sorted(composed("mediator=all").mediator.names) == sorted(MEDIATORS)


@pytest.mark.parametrize("mediator", ["head", "knockout"])
def test_parts_of_attention_are_chosen_by_name(mediator: str) -> None:
    assert composed(f"mediator={mediator}").mediator.names == [mediator]


@pytest.mark.parametrize(("model", "window"), [("tiny", 3), ("gpt2_xl", 9)])
def test_edges_are_cut_in_nine_layers_or_in_fewer(model: str, window: int) -> None:
    assert composed(f"model={model}", "mediator=knockout").mediator.windows == [window]
    given = composed(f"model={model}", "mediator=knockout", "mediator.window=[4,12]")
    assert given.mediator.windows == [4, 12]


def keys(*overrides: str) -> list[str]:
    return [mediator.key for mediator in make_mediators(composed(*overrides).mediator)]


def test_every_window_direction_and_place_is_a_store_of_its_own() -> None:
    """What has no window, or no direction, is taken once."""
    several = "mediator.names=[hidden,mlp,head,knockout]"
    assert keys(several, "mediator.window=[1,3,1]") == [
        *("hidden", "mlp-w1", "mlp-w3", "head", "knockout-w1", "knockout-w3"),
    ]
    assert keys(several, "mediator.direction=[denoise,noise]") == [
        *("hidden", "hidden-noise", "mlp-w3", "mlp-w3-noise", "head", "head-noise", "knockout-w3"),
    ]
    at = keys(several, "mediator.positions=[last,first_subject]")
    assert at == [
        *("hidden-at-first_subject+last", "mlp-w3-at-first_subject+last"),
        *("head-at-first_subject+last", "knockout-w3"),
    ]
    assert keys("mediator=head", "mediator.positions=[last,last_subject]") == ["head"]
    assert keys("mediator=hidden", "mediator.positions=all") == ["hidden"]
    assert keys("mediator=knockout", "mediator.query=last_subject") == [
        "knockout-w3-from-last_subject"
    ]
    for key in (*at, "knockout-w3-from-last_subject", "mlp-w3-noise", "head-at-all"):
        assert str(MediatorKey.parse(key)) == key


@pytest.mark.parametrize("engine", choices("engine"))
def test_an_engine_is_chosen_by_its_name(engine: str) -> None:
    assert composed(f"engine={engine}").engine.name is EngineName(engine)


@pytest.mark.parametrize("preset", sorted({*choices("model")} - {"auto", "tiny"}))
def test_windows_are_about_a_fifth_of_few_layers_and_ten_of_many(preset: str) -> None:
    """As 10 of GPT-2 XL's 48; models of 24 layers and more keep the 10 of the published code."""
    about = re.search(r"(\d+) layers", (CONF / "model" / f"{preset}.yaml").read_text("utf-8"))
    assert about is not None
    n_layers = int(about[1])
    window = composed(f"model={preset}").mediator.window
    assert window == (10 if n_layers >= 24 else max(1, int(n_layers * 10 / 48 + 0.5)))
    assert 2 * window < n_layers


def test_the_window_is_the_models_unless_it_is_given() -> None:
    assert composed("model=gpt2_xl").mediator.window == 10  # the published one
    assert composed("model=tiny").mediator.window == 3
    assert composed("model=tiny", "model.window=4").mediator.window == 4
    assert composed("model=tiny", "mediator.window=5", "mediator=mlp").mediator.window == 5


def test_names_of_own_models_and_facts_come_from_their_paths() -> None:
    run = composed(
        "model=auto", "model.path=/models/Qwen2.5-0.5B/", "dataset=file", "dataset.path=a/my.v2.csv"
    )
    assert (run.model.name, run.dataset.name) == ("Qwen2.5-0.5B", "my.v2")
    assert composed("model=auto", "model.path=owner/name").model.name == "name"
    assert composed("model=auto", "model.path=owner/name", "model.name=x").model.name == "x"


def test_an_experiment_overrides_the_groups_and_yields_to_the_command_line() -> None:
    run = composed("experiment=seed", "model=gpt2")
    assert run.mediator.names == ["hidden", "hidden_attn_severed", "hidden_mlp_severed"]
    assert run.roles.scheme is RoleScheme.seed
    assert (run.activations.clean, run.activations.corrupted) == ([*SITES], ["attn", "mlp"])
    assert run.model.name == "gpt2"
    assert composed("experiment=seed", "roles.scheme=rome").roles.scheme is RoleScheme.rome


MODULES = {"embedding": "a", "block": "b.[LAYER_NUM]", "attn": "c", "mlp": "d"}


def test_module_paths_are_given_key_by_key() -> None:
    given = [f"model.modules.{site}='{path}'" for site, path in MODULES.items()]
    assert composed(*given).model.modules == ModulesConfig(**MODULES)
    assert composed("model.modules=null").model.modules is None
    assert composed(*given[:2]).model.modules == ModulesConfig("a", "b.[LAYER_NUM]")
    assert composed(*given[:2], "model.modules.attn=''").model.modules == ModulesConfig(
        "a", "b.[LAYER_NUM]"
    )
    for lacking in (given[1:], given[:1]):
        with pytest.raises(KtraceError, match=r"model\.modules lacks (embedding|block): give emb"):
            composed(*lacking)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noise.samples=1.5", "could not be converted to Integer"),
        ("noise.multiple=big", "could not be converted to Float"),
        (
            "stage=trace",
            "one of [filter, clean, corrupted, restore, analyze, all, compare, status, compact, "
            "verify, check]",
        ),
        ("roles.scheme=rom", "expected one of [rome, seed]"),
        ("model.dtype=float8", "expected one of [auto, float32, float64, bfloat16, float16]"),
        ("dataset.url=[1]", "Cannot convert 'list' to string"),
        ("mediator.names=hidden", "is not a ListConfig, list or tuple"),
    ],
)
def test_a_wrong_type_is_refused_when_composing(override: str, message: str) -> None:
    with pytest.raises(KtraceError) as raised:
        composed(override)
    assert message in str(raised.value)
    assert override.split("=")[0] in str(raised.value)


@pytest.mark.parametrize("override", ["noise.sigma=3", "sigma=3", "model.modules.norm=x"])
@pytest.mark.parametrize("sign", ["", "+"])
def test_an_unknown_key_is_refused_even_when_it_is_added(sign: str, override: str) -> None:
    """Hydra lets `+key=value` through; the run would go on without what the user asked for."""
    with pytest.raises(KtraceError) as raised:
        composed(sign + override)
    assert str(raised.value).startswith(f"unknown key {override.split('=')[0]}; keys here: ")


@pytest.fixture(scope="module")
def on_a_cpu() -> RunConfig:
    return composed("model.device=cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dataset.limit", 0, "dataset.limit=0 is out of range: at least 1"),
        ("dataset.limit", -3, "dataset.limit=-3 is out of range: at least 1"),
        ("mediator.window", 0, "mediator.window=0 is out of range: at least 1"),
        *(
            ("mediator.window", window, f"mediator.window={window} is out of range: at least 1 lay")
            for window in ([], [1, 0], [3, -1], [1, "2"], ["x"], "x", "", 1.5, True, [[1]], None)
        ),
        *(
            (
                "mediator.direction",
                given,
                f"mediator.direction={given} is no direction: choose from",
            )
            for given in ("up", "", [], ["denoise", "up"], [["noise"]], None, 1, {"noise": 1})
        ),
        *(
            (
                "mediator.positions",
                given,
                f"mediator.positions={given} names no positions: give all",
            )
            for given in ([], [1], 3, [["last"]], {"last": 1}, True)
        ),
        ("mediator.positions", ["all", "last"], "mediator.positions=['all', 'last']: all stands a"),
        ("analysis.share", -0.5, "analysis.share=-0.5 is out of range: "),
        ("noise.samples", 0, "noise.samples=0 is out of range: at least 1"),
        ("noise.samples", -1, "noise.samples=-1 is out of range: at least 1"),
        ("noise.seed", -1, "noise.seed=-1 is out of range: at least 0"),
        ("noise.seed", 2**32, "noise.seed=4294967296 is out of range: at most 4294967295"),
        ("noise.multiple", -1.0, "noise.multiple=-1.0 is out of range: at least 0"),
        ("noise.multiple", float("nan"), "noise.multiple=nan is out of range: at least 0"),
        ("noise.std", -0.1, "noise.std=-0.1 is out of range: at least 0"),
        ("analysis.smallest", -0.1, "analysis.smallest=-0.1 is out of range: at least 0"),
        ("analysis.contrasts", ["mlp minus last"], "analysis.contrasts: 'mlp minus last' names "),
        ("analysis.contrasts", ["halves"], "analysis.contrasts: 'halves' is neither mediators, "),
        ("analysis.contrasts", [3], "analysis.contrasts: 3 is no text"),
        ("noise.std", float("inf"), "noise.std=inf is out of range: at least 0, and finite"),
        ("mediator.names", [], "mediator.names is empty"),
        ("output_dir", "", "output_dir is empty"),
        ("model.device_map", "auto", "model.device='cpu' and model.device_map exclude"),
        *(
            (key, name, f"{key}={name!r} cannot name a folder")
            for key in ("model.name", "dataset.name")
            for name in ("../../x", "..", ".", ".hidden", "", "a/b", "a\\b", "/a", "a b", "a\n")
        ),
    ],
)
def test_out_of_range(on_a_cpu: RunConfig, key: str, value: Any, message: str) -> None:
    run = deepcopy(on_a_cpu)
    owner: Any = run
    *groups, name = key.split(".")
    for group in groups:
        owner = getattr(owner, group)
    setattr(owner, name, value)
    with pytest.raises(KtraceError) as raised:
        check(run)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    "override",
    [
        "dataset.limit=1",
        "mediator.window=1",
        "noise.samples=1",
        "noise.seed=0",
        "noise.seed=4294967295",
        "noise.multiple=0",  # no noise: TE = 0
        "noise.std=0",
        "noise.std=0.25",
        "model.name=Llama-3.2_3B+x",
        "output_dir=.",
    ],
)
def test_the_least_that_is_allowed(override: str) -> None:
    key, value = override.split("=")
    owner: Any = composed(override)
    for name in key.split("."):
        owner = getattr(owner, name)
    assert str(owner) in (value, f"{value}.0")


def named(*overrides: str) -> str:
    return composed(
        "dataset=prompt", *(f"dataset.{override}" for override in overrides)
    ).dataset.name


def test_every_prompt_has_a_folder_of_its_own() -> None:
    rome = named("prompt='Rome, in'", "subject=Rome")
    assert rome.startswith("prompt-rome-")
    others = [
        named("prompt='Rome, in the'", "subject=Rome"),
        named("prompt='Rome, in'", "subject=in"),
        named("prompt='Rome, in'", "subject=Rome", "attribute=Italy"),
        named("prompt='Rome, in'", "subject=Rome", "subject_start=0"),
        named("prompt='日本 is'", "subject='日本'"),
    ]
    assert len({rome, *others}) == 6
    assert named("prompt='Rome, in'", "subject=Rome") == rome


@pytest.mark.parametrize(
    ("subject", "slug"),
    [
        ("Müller", "muller"),
        ("Łódź, Ørsted", "lodz-orsted"),
        ("Straße", "strase"),
        ("\u0065\u0301t\u00e9", "ete"),  # however it is composed
        ("中国", "u4e2du56fd"),
        ("Đà Nẵng", "da-nang"),
        ("Ω", "u03a9"),
        ("?", ""),
    ],
)
def test_a_folder_is_named_by_its_subject_in_any_script(subject: str, slug: str) -> None:
    name = named(f"prompt={subject} is", f"subject={subject}")
    assert re.fullmatch(rf"prompt-{slug}{'-' if slug else ''}[0-9a-f]{{8}}", name), name


def test_what_makes_facts_dependent_is_chosen() -> None:
    assert composed().analysis.cluster == "relation_id"
    assert composed("analysis.cluster=subject").analysis.cluster == "subject"
    assert composed("analysis.cluster=null").analysis.cluster is None
    with pytest.raises(KtraceError) as raised:
        composed("analysis.cluster=known_id")
    assert str(raised.value) == (
        "analysis.cluster='known_id' is nothing that facts share: choose from relation_id, "
        "subject, attribute, or null"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.path=null"], "dataset.path is not set: give dataset.path=... or dataset=prompt"),
        (["dataset=prompt", "dataset.prompt=x"], "dataset.subject is not set: give dataset.sub"),
        (["dataset=prompt", "dataset.subject=x"], "dataset.prompt is not set: give dataset.prompt"),
        (
            ["dataset.prompt=x"],
            f"dataset.path={ROOT / 'data' / 'facts.jsonl'} and dataset.prompt exclude each",
        ),
        (["dataset=prompt", "dataset.prompt=x", "dataset.subject=null"], "dataset.subject is not"),
        (["dataset.revision=v1"], "dataset.revision='v1' is for dataset=hub, and there is no data"),
        (["dataset.split=test"], "dataset.split='test' is for dataset=hub, and there is no datas"),
        (["dataset=known_1000", "dataset.hub=a/b"], "dataset.url=https://rome.baulab.info/data/ds"),
        (["dataset=hub", "dataset.hub=a/b", "dataset.prompt=x"], "dataset.prompt=x and dataset.h"),
        (["dataset=hub", "dataset.hub=a/b", "dataset.split=null"], "dataset.split is not set: na"),
        (["dataset=hub", "dataset.path=a.csv"], "dataset.hub is not set: give dataset.hub=..."),
        (["dataset.columns.text=x"], "unknown key dataset.columns.text; keys here: known_id, pro"),
    ],
)
def test_what_says_where_the_facts_are(overrides: list[str], message: str) -> None:
    with pytest.raises(KtraceError) as raised:
        composed(*overrides)
    assert str(raised.value).startswith(message)


def test_the_noise_level_is_relative_or_absolute_but_not_both() -> None:
    with pytest.raises(KtraceError, match=r"noise\.multiple=3\.0 and noise\.std=0\.1 exclude"):
        composed("noise.multiple=3", "noise.std=0.1")


def test_what_is_compared_is_named_by_patterns() -> None:
    assert composed("stage=compare", "runs=outputs/*/*/*").runs == "outputs/*/*/*"
    assert composed("stage=compare", "runs=[b/*,a/*]").runs == ["b/*", "a/*"]
    for runs in ("runs=3", "runs=[]", "runs=[3]", "runs=''", "runs={a: b}"):
        with pytest.raises(KtraceError, match=r"runs=.* names no folders: give a pattern such as"):
            composed("stage=compare", runs)
    with pytest.raises(KtraceError, match=r"analysis\.pool=positions has no meaning for stage=com"):
        composed("stage=compare", "runs=x", "analysis.pool=positions")


def test_what_is_kept_is_said_in_one_way() -> None:
    """The same choice in another order is the same store."""
    asked = composed(
        "activations.clean=[mlp,attn,mlp]",
        "activations.corrupted=[attn]",
        "activations.layers=[4,1,4]",
        "activations.positions=[last,first_subject]",
        "activations.samples=99",
    )
    found = kept_states(asked.activations, n_samples=10)
    assert found["clean"].fingerprint == {
        "sites": ["attn", "mlp"],
        "layers": [1, 4],
        "positions": ["first_subject", "last"],
    }
    # As many as there are.
    assert found["corrupted"].fingerprint["samples"] == 10
    assert all(KeptStates.of(kept.fingerprint) == kept for kept in found.values())
    nothing = composed("activations.clean=[]").activations
    assert kept_states(nothing, n_samples=10) == {}


@pytest.mark.parametrize(
    ("other", "covered"),
    [
        ({}, True),
        ({"sites": ("mlp",)}, True),
        ({"sites": ("hidden", "mlp")}, False),
        ({"layers": (4,)}, True),
        ({"layers": (0, 4)}, False),
        ({"layers": None}, False),
        ({"positions": ("last",)}, True),
        ({"positions": ("further",)}, False),
        ({"positions": None}, False),
        ({"samples": 1}, True),
        ({"samples": 3}, False),
    ],
)
def test_what_is_stored_covers_what_is_a_part_of_it(other: dict[str, Any], covered: bool) -> None:
    stored = KeptStates(("attn", "mlp"), (1, 4), ("last_subject", "last"), 2)
    assert stored.covers(replace(stored, **other)) == covered
    everything = KeptStates(("hidden", "attn", "mlp"), samples=3)
    assert everything.covers(replace(stored, **other))
