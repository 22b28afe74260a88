"""No override is silently without effect: it is read, refused, or said to be of no use."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrace.config import RunConfig, Stage
from ktrace.config.compose import composed
from ktrace.errors import KtraceError
from ktrace.pipeline.run import run
from ktrace.pipeline.unread import unread
from tests.support.command import Ktrace, refused
from tests.support.configs import Compose

pytestmark = pytest.mark.usefixtures("no_figures", "no_proof")


def listed(text: str) -> list[str]:
    return text.strip().splitlines()


# A value for every key of the schema, other than its default.
VALUES = listed("""
model.name=other
model.path=data/tiny
model.revision=main
model.dtype=float64
model.device=cpu
model.device_map=auto
model.attention=eager
model.quantization=int8
model.trust_remote_code=true
model.allow_pickle=true
model.window=4
model.modules.embedding=e
model.modules.block=b
model.modules.attn=a
model.modules.mlp=m
model.modules.heads=h
mediator.names=[mlp]
mediator.window=3
mediator.direction=noise
mediator.positions=[last]
mediator.query=last_subject
noise.kind=uniform
noise.multiple=2
noise.std=0.5
noise.samples=4
noise.seed=7
noise.replace=true
noise.degrees=4
noise.foil=given
dataset.name=other
dataset.path=other.jsonl
dataset.limit=2
dataset.url=https://example.org/x.jsonl
dataset.sha256=0
dataset.encoding=latin-1
dataset.delimiter=tab
dataset.answer=full
dataset.separator=none
dataset.chat=true
dataset.bos=strip
dataset.hub=owner/name
dataset.subset=en
dataset.split=train
dataset.revision=main
dataset.columns.known_id=i
dataset.columns.prompt=p
dataset.columns.subject=s
dataset.columns.attribute=a
dataset.columns.template=t
dataset.columns.relation_id=r
dataset.columns.subject_start=b
dataset.columns.corrupted_prompt=c
dataset.columns.foil=f
dataset.prompt=Rome
dataset.subject=Rome
dataset.attribute=Italy
dataset.also=[Europe]
dataset.subject_start=0
dataset.corrupted_prompt=Paris
dataset.foil=France
dataset.noise_facts=x.jsonl
roles.scheme=seed
roles.single_token=both
analysis.folder=there
analysis.partial=true
analysis.pool=positions
analysis.palette=rome
analysis.cluster=null
analysis.interval=facts_and_samples
analysis.smallest=0.1
analysis.share=0.9
analysis.facts=[0]
analysis.relations=all
analysis.contrasts=[roles]
activations.clean=[mlp]
activations.corrupted=[attn]
activations.layers=[0]
activations.positions=[last]
activations.samples=1
engine.name=reference
engine.row_budget=5
engine.prove=never
engine.workers=1
logger.kind=wandb
logger.project=mine
logger.name=mine
logger.folder=elsewhere
logger.uri=http://localhost:9
metric=logit_difference
stage=restore
runs=x
mend=true
compare=true
shard=1/2
claims=files
output_dir=elsewhere
""")
# Read, but only of a dataset that is not there, which a run with its stores in place does not tell.
ON_DEMAND = {"dataset.url"}
# Read by its parts' own class, all at once.
WHOLE = ("model.modules", "dataset.columns")


def leaves(part: Any, prefix: str = "") -> Iterator[str]:
    for entry in fields(part):
        value = getattr(part, entry.name)
        key = f"{prefix}{entry.name}"
        yield from leaves(value, f"{key}.") if is_dataclass(value) else [key]


def recorded(part: Any, seen: set[str], prefix: str = "") -> None:
    """From now on, note which keys of a config are looked at, but by copies of it."""
    kind, names = type(part), {entry.name for entry in fields(part)}

    def look(self: Any, name: str) -> Any:
        if name in names and Path(sys._getframe(1).f_code.co_filename).name != "dataclasses.py":
            seen.add(f"{prefix}{name}")
        return object.__getattribute__(self, name)

    for name in names:
        if is_dataclass(value := getattr(part, name)):
            recorded(value, seen, f"{prefix}{name}.")
    part.__class__ = type(kind.__name__, (kind,), {"__getattribute__": look})


@pytest.fixture(scope="module")
def read(
    own: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Stage], set[str]]:
    """What each stage looks at, on runs that compute everything anew where it computes."""
    found: dict[Stage, set[str]] = {}
    done = tmp_path_factory.mktemp("done") / "out"

    def of(stage: Stage) -> set[str]:
        if stage in found:
            return found[stage]
        common = [*own, "noise.samples=2", "dataset.limit=3", "mediator.names=[hidden,knockout]"]
        if not done.exists():
            for seed in (1, 2):
                run(
                    composed([*common, f"output_dir={done}", f"noise.seed={seed}", "stage=restore"])
                )
        adds = stage in (Stage.filter, Stage.clean, Stage.corrupted, Stage.restore, Stage.all)
        output = tmp_path_factory.mktemp("new") if adds else done
        extra = [f"runs={done}/*/*/*"] if stage is Stage.compare else []
        config = composed([*common, f"output_dir={output}", f"stage={stage.value}", *extra])
        seen: set[str] = set()
        recorded(config, seen)
        run(config)
        found[stage] = seen
        return seen

    return of


def is_read(key: str, seen: set[str]) -> bool:
    return key in seen or any(key.startswith(f"{p}.") and p in seen for p in WHOLE)


def test_a_value_is_here_for_every_key(own: tuple[str, ...]) -> None:
    config = composed([*own, "model.modules.embedding=e", "model.modules.block=b"])
    assert [text.partition("=")[0] for text in VALUES] == list(leaves(config))


def needed(stage: Stage) -> list[str]:
    """What every run of a stage is given."""
    runs = ["runs=x"] if stage is Stage.compare else []
    return [f"stage={stage.value}", *runs]


@pytest.mark.parametrize("stage", Stage)
def test_every_key_is_read_or_said_to_be_of_no_use(
    read: Callable[[Stage], set[str]], own: tuple[str, ...], stage: Stage
) -> None:
    config, silent = composed([*own, *needed(stage)]), []
    for override in VALUES:
        key = override.partition("=")[0]
        if key in ON_DEMAND or is_read(key, read(stage)) or unread(config, [override]):
            continue
        try:
            changed = composed([*own, *needed(stage), override])
        except KtraceError:  # refused
            continue
        # Paths name folders.
        names = [(run.model.name, run.dataset.name) for run in (config, changed)]
        if names[0] != names[1]:
            continue
        if not is_read(key, read(changed.stage)) and not unread(changed, [override]):
            silent.append(key)
    assert not silent, f"stage={stage.value} neither reads nor names these"


@settings(
    max_examples=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    stage=st.sampled_from([*Stage]),
    mediators=st.lists(
        st.sampled_from(["hidden", "mlp", "hidden_attn_severed", "head", "knockout"]),
        min_size=1,
        max_size=2,
        unique=True,
    ),
    noise=st.sampled_from(["gaussian", "student_t", "zero", "token_replacement", "pair"]),
    overrides=st.lists(st.sampled_from(VALUES), max_size=4, unique=True),
)
def test_no_command_line_is_silently_without_effect(
    read: Callable[[Stage], set[str]],
    own: tuple[str, ...],
    stage: Stage,
    mediators: list[str],
    noise: str,
    overrides: list[str],
) -> None:
    lines = [f"noise={noise}", f"mediator.names=[{','.join(mediators)}]", *overrides]
    try:
        config = composed([*own, *needed(stage), *lines])
        said = unread(config, lines)
    except KtraceError:
        return
    for text in lines:
        key = text.partition("=")[0]
        is_said = any(line.startswith(f"{key} has no effect: ") for line in said)
        if not is_said and "." in key and key not in {*ON_DEMAND, "model.path", "dataset.path"}:
            assert is_read(key, read(config.stage)), (key, lines)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["mediator.window=3"], "mediator.window has no effect: hidden takes one layer at a time"),
        (["mediator=head", "model.window=3"], "model.window has no effect: head takes one layer"),
        (["mediator=mlp", "mediator.window=3", "model.window=2"], "model.window has no effect: m"),
        (["mediator.query=last_subject"], "mediator.query has no effect: hidden cuts no edges"),
        (["noise=zero", "noise.seed=3"], "noise.seed has no effect: noise.kind=zero does not"),
        (["noise.degrees=4"], "noise.degrees has no effect: noise.kind=gaussian does not read"),
        (["stage=compare", "runs=x", "mediator=mlp"], "mediator has no effect: stage=compare does"),
        (["stage=filter", "roles.scheme=seed"], "roles.scheme has no effect: stage=filter does"),
        (["compare=true"], "compare has no effect: it ends a sweep (-m), and this is a single run"),
        (["activations.samples=1"], "activations.samples has no effect: activations.corrupted nam"),
        (["dataset.subject=Rome"], "dataset.subject has no effect: it is for dataset=prompt"),
        (["+dataset.attribute=Rome"], "dataset.attribute has no effect: it is for dataset=prompt"),
    ],
)
def test_what_has_no_effect_is_said(overrides: list[str], line: str) -> None:
    [said] = unread(composed(overrides), overrides)
    assert said.startswith(line)


@pytest.mark.parametrize(
    "overrides",
    [
        ["mediator=mlp", "mediator.window=3"],
        ["mediator=mlp", "model.window=3"],
        ["mediator=knockout", "mediator.query=last_subject"],
        ["noise=student_t", "noise.degrees=4"],
        ["stage=compare", "runs=x", "dataset.limit=3", "roles.scheme=seed"],
        ["stage=status", "model=gpt2", "dataset=prompt", "dataset.prompt=a", "dataset.subject=a"],
        ["activations.corrupted=[mlp]", "activations.samples=1"],
        ["dataset=prompt", "dataset.prompt=a", "dataset.subject=a", "dataset.attribute=b"],
        ["hydra.run.dir=x", "experiment=seed"],
    ],
)
def test_what_has_an_effect_is_not_said(overrides: list[str]) -> None:
    assert unread(composed(overrides), overrides) == []


def test_the_command_says_it_once(ktrace: Ktrace, own: tuple[str, ...]) -> None:
    line = "mediator.window has no effect: hidden takes one layer at a time\n"
    ended = ktrace(*own, "stage=filter", "metric=logit_difference", "mediator.window=3")
    assert ended.code == 0
    first = ended.stderr.splitlines()[0]
    assert first == "mediator.window has no effect: stage=filter does not read it"
    ended = ktrace("-m", *own, "stage=restore", "noise.samples=1,2", "mediator.window=3")
    assert ended.code == 0
    assert ended.stderr.count(line) == 1
    assert "compare has" not in ended.stderr


@pytest.mark.parametrize("group", ["model", "mediator", "noise", "dataset", "engine", "experiment"])
def test_no_group_is_taken_away(ktrace: Ktrace, own: tuple[str, ...], group: str) -> None:
    refused(ktrace(*own, f"~{group}"), f"~{group} takes nothing away", f"give {group}=...")
    with pytest.raises(KtraceError, match=f"~{group} takes nothing away"):
        composed([f"~{group}"])


def test_runs_in_folders_with_brackets_are_compared(stores: Path, in_folder: Path) -> None:
    """A pattern as everywhere, and a name where there is such a folder."""
    [found] = stores.glob("*/*/*/run.yaml")
    run_folder = found.parent.relative_to(stores)
    folder = in_folder / "mine[1]"
    for name in ("a", "b"):
        shutil.copytree(stores, folder / name)
    for runs in ("mine[1]/*/*/*/*", str(folder / "*" / run_folder), "min[de]?1?/*/*/*/*"):
        comparison = run(composed(["stage=compare", f"runs='{runs}'"])).comparison
        assert comparison is not None
        assert len(comparison.runs) == 2
    single = [f"'{folder / name / run_folder}'" for name in ("a", "b")]
    assert run(composed(["stage=compare", f"runs=[{','.join(single)}]"])).comparison is not None


def test_a_fact_that_will_not_be_shown_is_refused_before_it_is_computed(
    traced: Compose, config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the clean runs are there; then nothing that was computed is lost."""
    from ktrace.pipeline import trace

    complete = traced("stage=analyze")
    rows = run_rows(complete)
    left_out = next(row["known_id"] for row in rows if not row["is_candidate"])
    computed = []
    monkeypatch.setattr(trace, "run_traced", lambda *args: computed.append(args))
    for stage in ("all", "analyze"):
        with pytest.raises(KtraceError, match=f"known_id={left_out}: it is no candidate, so it is"):
            run(traced(f"stage={stage}", f"analysis.facts=[{left_out}]", "noise.seed=1"))
    with pytest.raises(KtraceError, match="known_id=987654: the dataset has no such fact"):
        run(config("analysis.facts=[987654]", "noise.seed=5"))
    last = rows[-1]["known_id"]
    with pytest.raises(KtraceError, match=f"known_id={last}: .* first dataset.limit=2 facts"):
        run(traced("dataset.limit=2", f"analysis.facts=[{last}]"))
    assert not computed


def run_rows(config: RunConfig) -> list[Any]:
    from ktrace.store import RunFolders

    [found] = Path(config.output_dir).glob("*/*/*/run.yaml")
    clean = RunFolders(found.parent).clean
    return sorted(clean.read("known_id", "is_candidate"), key=lambda row: int(row["index"]))
