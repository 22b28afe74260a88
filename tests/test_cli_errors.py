"""What a person can mend is one line on stderr that names key and value, exit 1, and no trace."""

import csv
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ktrace.config.compose import composed
from tests.support.command import Ended, Ktrace, refused, said
from tests.support.configs import refusal
from tests.support.places import ROOT
from tests.support.sweeps import records


def test_the_helper_sees_a_good_run(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    """Else everything below would pass on a command that always fails."""
    ended = ktrace(*own, "stage=filter")
    assert (ended.code, said(ended.stderr)) == (0, "")
    assert "candidates: 6" in ended.stdout
    assert Path("outputs/random/known/clean").is_dir()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model=gpt9", ["model=gpt9 is unknown", "choose from auto, bloom_7b1, falcon_7b"]),
        ("mediator=hiden", ["mediator=hiden", "did you mean hidden?", "all, attn, head, hidden, "]),
        ("noise=unifrom", ["noise=unifrom is unknown (did you mean uniform?): choose from"]),
        (
            "dataset=known",
            [
                "dataset=known is unknown",
                "counterfact, facts, file, hub, known_1000, pairs, prompt",
            ],
        ),
        ("engine=fast", ["engine=fast is unknown", "reference"]),
        ("experiment=none", ["experiment=none is unknown: choose from localize, seed, sh"]),
        ("modle.path=x", ["unknown key modle (did you mean model?)", "model, mediator, noise"]),
        ("modle=tiny", ["unknown key modle (did you mean model?)"]),
        ("model.pth=x", ["unknown key model.pth (did you mean path?)", "name, path, revision"]),
        ("noise.sample=3", ["unknown key noise.sample (did you mean samples?)", "kind, multiple"]),
        ("+noise.sample=3", ["unknown key noise.sample", "kind, multiple, std, samples, seed"]),
        ("noise.samples=many", ["noise.samples: ", "'many'", "Integer"]),
        ("noise.multiple=big", ["noise.multiple: ", "'big'", "Float"]),
        ("dataset.limit=1.5", ["dataset.limit: ", "'1.5'", "Integer"]),
        (
            "stage=trace",
            ["stage: ", "'trace'", "filter, clean, corrupted, restore, analyze, all, compare"],
        ),
        ("analysis.pool=tokens", ["analysis.pool: ", "'tokens'", "facts, positions"]),
        ("roles.single_token=first", ["roles.single_token: ", "'first'", "last, both"]),
        ("stage=compare", ["runs=None", "stage=compare", "runs='outputs/*/*/*'"]),
        ("runs=outputs/*/*/*", ["runs=outputs/*/*/*", "stage=all"]),
        ("roles.scheme=rom", ["roles.scheme: ", "'rom'", "rome, seed"]),
        ("model.dtype=float8", ["model.dtype: ", "'float8'", "auto, float32, float64, bfloat16"]),
        ("model.path=null", ["model.path=null: this key is not Optional"]),
        ("model.name=???", ["model.name is not set: give model.name=..."]),
        ("output_dir=???", ["output_dir is not set: give output_dir=..."]),
        ("model=../tiny", ["model=../tiny is unknown (did you mean tiny?): choose"]),
        ("hydra/launcher=none", ["hydra/launcher=none is unknown: choose from basic"]),
        ("model.window=0", ["model.window=0 is out of range: at least 1"]),
        ("noise.samples=32768", ["noise.samples=32768 is out of range: at most 32767"]),
        ("mediator.names=[[hidden]]", ["mediator.names: ['hidden'] is not the name of a mediator"]),
        ("engine.workers=0", ["engine.workers=0 is no number of processes: 1 or more, or auto"]),
        ("engine.workers=many", ["engine.workers=many is no number of processes: 1 or more, or"]),
        ("engine.workers=true", ["engine.workers=True is no number of processes"]),
        ("engine.workers=[2]", ["engine.workers=[2] is no number of processes"]),
        ("model.path=", ["model.path is empty"]),
        ("dataset.path=", ["dataset.path is empty"]),
        ('output_dir="~/x"', ["output_dir=~/x: write the home folder out, as $HOME"]),
        ("model.path=???", ["model.path is not set: give model.path=..."]),
        ("dataset.limit=0", ["dataset.limit=0 is out of range: at least 1"]),
        ("dataset.limit=-3", ["dataset.limit=-3 is out of range: at least 1"]),
        ("mediator.window=0", ["mediator.window=0 is out of range: at least 1"]),
        ("noise.samples=0", ["noise.samples=0 is out of range: at least 1"]),
        ("noise.multiple=-1", ["noise.multiple=-1.0 is out of range: at least 0"]),
        ("noise.std=-0.1", ["noise.std=-0.1 is out of range: at least 0"]),
        ("model.name=../../x", ["model.name='../../x' cannot name a folder"]),
        ("mediator.names=[]", ["mediator.names is empty"]),
        (
            "mediator.direction=up",
            ["mediator.direction=up is no direction: choose from denoise, n"],
        ),
        ("mediator.direction=[noise,up]", ["mediator.direction=['noise', 'up'] is no direction"]),
        ("mediator.window=[1,0]", ["mediator.window=[1, 0] is out of range: at least 1 layer"]),
        ("mediator.window=[]", ["mediator.window=[] is out of range", "[1,3,5,10]"]),
        ("mediator.window=[1,x]", ["mediator.window=[1, 'x'] is out of range"]),
        ("mediator.window=wide", ["mediator.window=wide is out of range: at least 1 layer"]),
        ("mediator.positions=[]", ["mediator.positions=[] names no positions: give all, or a li"]),
        ("mediator.positions=[all,last]", ["mediator.positions=['all', 'last']: all stands alone"]),
        (
            "mediator.positions=[end]",
            ["mediator.positions: 'end' is no role: choose from first_subject, middle_subject, "],
        ),
        ("mediator.names=[hiden]", ["mediator", "'hiden'", "hidden, hidden_attn_severed, hidden"]),
        (
            "activations.clean=[mpl]",
            ["activations.clean: 'mpl' is no site", "hidden, attn, mlp, or []"],
        ),
        (
            "activations.positions=[last subject]",
            ["activations.positions: 'last subject'", "mean last_subject?", "all, or a list of ro"],
        ),
        ("activations.positions=end", ["activations.positions='end'", "further, last"]),
        ("activations.layers=[3]", ["activations.layers: 3 is out of range", "0 to 2"]),
        ("activations.samples=0", ["activations.samples=0 is out of range: at least 1"]),
        ("output_dir=", ["output_dir is empty"]),
        ("model=tiny,gpt2", ["model=tiny,gpt2: one choice of model", "-m model=tiny,gpt2 makes"]),
        ("mediator=hidden,mlp", ["mediator=hidden,mlp: ", "'mediator.names=[hidden,mlp]' one run"]),
        ("mediator=[hidden,mlp]", ["mediator=[hidden,mlp]: ", "'mediator.names=[hidden,mlp]' o"]),
        ("+noise=[gaussian,zero]", ["+noise=[gaussian,zero]: ", "-m noise=gaussian,zero makes"]),
        ("engine=[suffix]", ["engine=[suffix]: one choice of engine makes a run"]),
        ("mediator.names=a,b", ["mediator.names=a,b: -m makes", "'mediator.names=[a,b]'"]),
        ("samples", ["'samples' cannot be read as key=value"]),
        ("model.modules.block=h.[LAYER_NUM]", ["model.modules lacks embedding"]),
        ("noise.std=(0.1)", ["'noise.std=(0.1)' cannot be read", "quoted"]),
        ("model.device=gpu", ["model.device='gpu'", "auto, cpu, cuda"]),
        ("model.revision=main", ["model.revision='main'", "is a folder"]),
    ],
)
def test_a_bad_value(
    own: tuple[str, ...], override: str, parts: list[str], in_folder: Path
) -> None:
    """In this process; that the command prints it is the matter of `test_config_fuzz.py`."""
    message = refusal(*own, override)
    for part in parts:
        assert part in message
    assert "\n" not in message
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["mediator=hidden_mlp_severed", "mediator.direction=noise"],
            ["mediator.direction=noise has no meaning for hidden_mlp_severed", "hidden, mlp, at"],
        ),
        (
            ["mediator=all", "mediator.direction=noise"],
            ["mediator.direction=noise has no meaning for hidden_attn_severed", "hidden, mlp, at"],
        ),
        (
            ["mediator=knockout", "mediator.direction=noise"],
            ["mediator.direction=noise has no meaning for knockout", "changes the clean run"],
        ),
        (
            ["mediator=knockout", "mediator.query=further"],
            ["mediator.query: 'further' is no role: choose from first_subject, last_subject, "],
        ),
        (["mediator=knockout", "mediator.query=end"], ["mediator.query: 'end' is no role"]),
        (
            ["mediator=knockout", "mediator.positions=[last]"],
            ["mediator.positions=['last'] has no meaning for knockout: edges have a query"],
        ),
    ],
    ids=lambda given: "-".join(given) if "=" in given[0] else "",
)
def test_what_a_mediator_cannot_do(
    ktrace: Ktrace, own: tuple[str, ...], overrides: list[str], parts: list[str], in_folder: Path
) -> None:
    refused(ktrace(*own, *overrides), *parts)
    assert not list(in_folder.iterdir())


# One token, the last.
ALONE = {"known_id": 8, "prompt": "The river Lissom", "subject": "Lissom", "attribute": "stands"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["mediator=head", "mediator.positions=[first_subsequent,further]"],
            "mediator.positions=first_subsequent,further: none of the 1 facts has such a position",
        ),
        (
            ["mediator.names=[mlp,hidden]", "mediator.positions=[middle_subject]"],
            "mediator.positions=middle_subject: none of the 1 facts has such a position",
        ),
        (
            ["mediator=knockout", "mediator.query=first_subsequent"],
            "mediator.query=first_subsequent: none of the 1 facts has such a position",
        ),
    ],
    ids=["heads", "outputs", "query"],
)
def test_positions_that_no_fact_has(
    ktrace: Ktrace, own: tuple[str, ...], overrides: list[str], words: str, in_folder: Path
) -> None:
    Path("facts.jsonl").write_text(json.dumps(ALONE))
    refused(ktrace(*own, "dataset.path=facts.jsonl", *overrides), words)
    assert not list(in_folder.rglob("*.h5"))


def test_pairs_of_unequal_length_are_left_out(
    ktrace: Ktrace, own: tuple[str, ...], facts_file: Path, in_folder: Path
) -> None:
    """With the reason; and where no other pair is left, there is nothing to trace."""
    first, second = (json.loads(line) for line in facts_file.read_text().splitlines()[:2])
    pairs = [
        {**first, "corrupted_prompt": first["prompt"].replace("stands", "speak")},
        {**second, "corrupted_prompt": second["prompt"].replace("town", "old town")},
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    Path("unequal.jsonl").write_text(json.dumps(pairs[1]))
    reason = "corrupted_prompt has more or fewer tokens than the prompt"
    ended = ktrace(*own, "dataset.path=pairs.jsonl", "noise=pair", "stage=restore")
    assert ended.code == 0
    assert "traced: 1" in ended.stdout
    [table] = Path("outputs").rglob("candidates.csv")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["left_out"] for row in rows] == ["", reason]
    ended = ktrace(*own, "dataset.path=unequal.jsonl", "noise=pair")
    refused(ended, "noise.kind=pair can corrupt none of the 1 candidates", reason)
    assert not list(in_folder.rglob("outputs/*/unequal/pair/restored"))


def test_a_foil_is_needed_where_it_is_compared_with(
    ktrace: Ktrace, own: tuple[str, ...], facts_file: Path, in_folder: Path
) -> None:
    """Before work; and before figures of a run that was made without."""
    fact = json.loads(facts_file.read_text().splitlines()[0])
    other = fact["prompt"].replace("stands", "speak")
    Path("pairs.jsonl").write_text(json.dumps({**fact, "corrupted_prompt": other}))
    asked = (*own, "dataset.path=pairs.jsonl", "noise=pair")
    words = ("has no foil, which metric=logit_difference compares the answer with", "noise.foil=c")
    refused(ktrace(*asked, "metric=logit_difference"), "known_id=100", *words)
    assert not Path("outputs").exists()
    assert ktrace(*asked, "stage=restore").code == 0
    refused(ktrace(*asked, "metric=logit_difference", "stage=analyze"), "known_id=100", *words)
    assert not list(in_folder.rglob("summary.json"))


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (["mediator=hidden", "mediator=mlp"], ["mediator=hidden mediator=mlp: ", ".names=[hidden"]),
        (["noise=zero", "+noise=mean"], ["noise=zero noise=mean: one", "-m noise=zero,mean makes"]),
        (["-m", "noise=[zero,mean],pair"], ["noise=[zero,mean],pair: one", "-m noise=zero,mean "]),
    ],
)
def test_the_last_of_several_choices_is_not_taken(
    ktrace: Ktrace, typed: list[str], parts: list[str], in_folder: Path
) -> None:
    refused(ktrace(*typed), *parts)
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize(
    ("typed", "preset"),
    [
        (["dataset.path=x.csv"], "facts"),
        (["dataset=pairs", "dataset.path=x.csv", "noise=pair"], "pairs"),
        (["stage=check", "++dataset.path=x.csv"], "facts"),
    ],
)
def test_a_path_is_not_run_under_the_name_of_a_preset(
    ktrace: Ktrace, typed: list[str], preset: str, in_folder: Path
) -> None:
    words = f"dataset={preset} has a file of its own"
    refused(ktrace(*typed), words, "give dataset=file dataset.path=x.csv")
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize(
    "typed", [["dataset=known_1000"], ["dataset.name=x"], ["dataset=file"], ["dataset=counterfact"]]
)
def test_a_copy_of_a_dataset_may_be_anywhere(ktrace: Ktrace, typed: list[str]) -> None:
    Path("x.csv").write_text("known_id,prompt,subject,attribute\n")
    refused(ktrace(*typed, "dataset.path=x.csv"), "dataset.path=x.csv holds no facts")


def test_presets_of_several_keys_are_read_together() -> None:
    both = composed(["experiment=[seed,localize]"])
    assert (both.roles.scheme.value, both.mediator.names[-1]) == ("seed", "knockout")


def test_a_choice_that_is_none(ktrace: Ktrace, own: tuple[str, ...], in_folder: Path) -> None:
    """Hydra raises no error of its own about it."""
    words = "a group (model, mediator, noise, dataset, engine, logger, experiment) takes"
    refused(ktrace(*own[2:], "model=null"), words)
    assert not list(in_folder.iterdir())


def test_what_a_choice_needs_is_asked_for(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    refused(ktrace("model=auto"), "model.path is not set: give model.path=...")
    refused(ktrace(*own[:3]), "dataset.path is not set: give dataset.path=...")


FACT = {"known_id": 7, "prompt": "The Eiffel Tower is in", "subject": "Eiffel Tower"}
GOOD = json.dumps(FACT | {"attribute": "Paris"}) + "\n"


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["dataset.path=facts.jsonl is not a file"]),
        ("", ["dataset.path=facts.jsonl holds no facts"]),
        (GOOD + "{oops\n", ["facts.jsonl, line 2: malformed JSON"]),
        (GOOD + GOOD, ["facts.jsonl, line 2: known_id=7 is already at facts.jsonl, line 1"]),
        (
            GOOD + json.dumps(FACT | {"subject": None}),
            ["facts.jsonl, line 2: no attribute, subject is empty;"],
        ),
        (
            GOOD.replace(" is in", ", the Eiffel Tower"),
            ["facts.jsonl, line 1: subject 'Eiffel Tower' is more than once in the prompt"],
        ),
        (GOOD.replace('subject": "', 'subject": "X'), ["subject 'XEiffel Tower' is not in the pr"]),
    ],
    ids=["missing", "empty", "malformed", "same-id", "no-fields", "subject-twice", "no-subject"],
)
def test_a_bad_dataset(
    ktrace: Ktrace, own: tuple[str, ...], content: str | None, parts: list[str], in_folder: Path
) -> None:
    if content is not None:
        Path("facts.jsonl").write_text(content)
    refused(ktrace(*own, "dataset.path=facts.jsonl"), *parts)
    assert {path.name for path in in_folder.iterdir()} <= {"facts.jsonl"}


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def with_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def truncate_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (without("model.safetensors"), ["has no weights", "*.safetensors"]),
        (without("config.json"), ["is not a model: it has no config.json"]),
        (truncate_config, ["config.json cannot be used"]),
        (without("tokenizer.json"), ["tokenizer"]),
        (
            with_config(architectures=["RwkvForCausalLM"], model_type="rwkv"),
            ["RwkvForCausalLM cannot be traced: its blocks hand on a state beside what they give"],
        ),
        (
            with_config(architectures=["ViTModel"], model_type="vit"),
            [
                "architecture ViTModel is not known",
                "GPT2LMHeadModel",
                "LlamaForCausalLM",
                "[LAYER_NUM]",
                "model.modules.block=",
            ],
        ),
        (with_config(model_type="none-such"), ["config.json cannot be used", "none-such"]),
        (with_config(num_hidden_layers=4), ["lacks weights", "model.layers.3."]),
    ],
    ids=[
        "no-weights",
        "no-config",
        "cut-config",
        "no-tokenizer",
        "refused-architecture",
        "unknown-architecture",
        "unknown-type",
        "fewer-weights",
    ],
)
def test_a_bad_model_folder(
    ktrace: Ktrace,
    own: tuple[str, ...],
    model_folder: Path,
    damage: Callable[[Path], None],
    parts: list[str],
) -> None:
    shutil.copytree(model_folder, "broken")
    damage(Path("broken"))
    refused(ktrace(*own, "model.path=broken"), "model.path=broken", *parts)
    assert not Path("outputs").exists()


def test_a_model_path_that_is_no_folder(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    Path("weights.safetensors").touch()
    refused(ktrace(*own, "model.path=weights.safetensors"), "model.path=weights.s", "is a file")
    refused(ktrace(*own, "model.path=./nowhere"), "model.path=./nowhere is not a folder")
    message = "model.path=nobody/nothing is no folder here and not in the hub cache, and HF_HUB_OFF"
    refused(ktrace(*own, "model.path=nobody/nothing"), message)
    assert not Path("outputs").exists()


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_an_output_that_cannot_be_written(
    ktrace: Ktrace, own: tuple[str, ...], output: str, in_folder: Path
) -> None:
    Path("file").write_text("kept")
    refused(ktrace(*own, f"output_dir={output}"), "output_dir: ", output, "cannot be written")
    assert Path("file").read_text() == "kept"
    assert [path.name for path in in_folder.iterdir()] == ["file"]


def test_no_candidate_is_left(ktrace: Ktrace, own: tuple[str, ...], facts_file: Path) -> None:
    Path("wrong.jsonl").write_text(facts_file.read_text().splitlines()[-1])
    refused(
        ktrace(*own, "dataset.path=wrong.jsonl"),
        "dataset.path=wrong.jsonl",
        "none of its first 1 facts is a candidate for model.name=random",
        "1 × another answer is predicted",
        "candidates.csv says what was predicted",
    )
    [table] = Path("outputs").rglob("candidates.csv")
    [row] = csv.DictReader(table.open(encoding="utf-8"))
    assert (row["is_candidate"], row["left_out"]) == ("False", "another answer is predicted")
    assert row["predicted"]
    assert float(row["p_predicted"]) > float(row["p_answer"])
    written = {path for path in Path("outputs").rglob("*") if path.is_file()}
    assert {path.parent.name for path in written if path.suffix == ".h5"} == {"clean"}
    # run.yaml, which says this too, and what the clean store is bound to.
    assert {path.name for path in written if path.suffix != ".h5"} >= {"run.yaml", "store.json"}
    assert {path.suffix for path in written} == {".h5", ".yaml", ".json", ".csv"}


def test_a_store_of_other_facts_is_neither_read_nor_touched(
    ktrace: Ktrace, own: tuple[str, ...], facts_file: Path
) -> None:
    lines = facts_file.read_text().splitlines(keepends=True)
    facts = Path("facts.jsonl")
    facts.write_text("".join(lines))
    assert ktrace(*own, "dataset.path=facts.jsonl", "stage=filter").code == 0
    before = {p: p.read_bytes() for p in Path("outputs").rglob("*") if p.is_file()}
    facts.write_text("".join(lines[:-1]))
    refused(
        ktrace(*own, "dataset.path=facts.jsonl"),
        "outputs/random/facts/clean holds results of other settings",
        '"n_facts": 7',
        '"n_facts": 6',
        "Choose another output_dir, model.name or dataset.name",
    )
    assert {p: p.read_bytes() for p in Path("outputs").rglob("*") if p.is_file()} == before


def test_a_bad_job_does_not_stop_its_sweep(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    ended = ktrace("-m", *own, "noise.samples=0,1", "stage=filter", "hydra.sweep.dir=jobs")
    assert ended.code == 1
    assert "job 0 failed: noise.samples=0 is out of range" in ended.stderr
    assert "Traceback" not in ended.stderr
    jobs = list(records(Path("jobs")).values())
    assert [job["status"] for job in jobs] == ["failed", "done"]
    assert [job["model"] for job in jobs] == ["random", "random"]


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("file", ["output_dir: file/sweeps/", "it is not a folder"]),
        ("/proc/x", ["No such file or directory", "/proc/x"]),  # even for root
        ("", ["output_dir is empty"]),
        ("${nothing}", ["Interpolation key 'nothing' not found"]),
    ],
)
def test_a_sweep_that_cannot_be_written(
    ktrace: Ktrace, own: tuple[str, ...], output: str, parts: list[str], in_folder: Path
) -> None:
    """Hydra makes the sweep's folder itself, before any job."""
    Path("file").write_text("kept")
    refused(ktrace("-m", *own, "noise.samples=1,2", f"output_dir={output}"), *parts)
    assert [path.name for path in in_folder.iterdir()] == ["file"]


def test_an_error_in_a_job_is_no_error_of_hydra(
    ktrace: Ktrace, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Hydra raises about a command line is one line; what a bug raises keeps its traceback."""

    def fail(config: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("ktrace.pipeline.run.run", fail)
    with pytest.raises(ValueError, match="a bug"):
        ktrace(*own)


def test_a_job_whose_name_cannot_be_told_fails_alone(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    path = own[1].removeprefix("model.path=")
    ended = ktrace("-m", *own, f"model.path=???,{path}", "stage=filter", "hydra.sweep.dir=jobs")
    assert ended.code == 1
    jobs = list(records(Path("jobs")).values())
    assert [job["status"] for job in jobs] == ["failed", "done"]
    assert jobs[0]["message"] == "model.path is not set: give model.path=..."


def python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A real Python with this checkout."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def test_a_real_command_prints_one_line_and_exits_1(in_folder: Path) -> None:
    ended = python("-m", "ktrace", "model=auto", "model.path=x", "noise.samples=0")
    refused(Ended(ended.returncode, ended.stdout, ended.stderr), "noise.samples=0 is out of range")
    assert not list(in_folder.iterdir())


def test_a_traceback_is_given_to_who_asks(in_folder: Path) -> None:
    arguments = ("-m", "ktrace", "model=auto", "model.path=x", "noise.samples=0")
    ended = python(*arguments, HYDRA_FULL_ERROR="1")
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert "ktrace.errors.KtraceError: noise.samples=0 is out of range" in ended.stderr


HELP = """
import runpy, sys
sys.argv = ["ktrace", "--help"]
try:
    runpy.run_module("ktrace", run_name="__main__")
finally:
    print("imported:", *sorted({"torch", "transformers", "pandas", "matplotlib"} & {*sys.modules}))
"""


def test_help_is_quick_and_imports_nothing_heavy(in_folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    ended = python("-c", HELP)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert ended.returncode == 0
    assert ended.stdout.startswith("ktrace: causal tracing")
    assert "model: auto, bloom_7b1, falcon_7b, " in ended.stdout
    assert ended.stdout.splitlines()[-1] == "imported:"
    assert seconds < 5  # of the processor: this machine may be busy
    assert not list(in_folder.iterdir())


def test_help_is_what_hydra_makes_of_it(in_folder: Path) -> None:
    """Which is asked where there is anything else on the line."""
    own = python("-m", "ktrace", "--help")
    assert own.returncode == 0
    assert own.stdout == python("-m", "ktrace", "stage=all", "--help").stdout
    assert own.stdout == python("-m", "ktrace", "-h").stdout


def test_a_reader_that_goes_away_is_no_error(in_folder: Path) -> None:
    """`python -m ktrace --help | head -1`."""
    with subprocess.Popen(
        [sys.executable, "-m", "ktrace", "--help"],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
