"""Every engine on devices that are not here: pretended ones, whose numbers are the CPU's."""

import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from torch import nn

from ktrace.config import EngineConfig, NoiseConfig, NoiseKind, Prove
from ktrace.errors import KtraceError, NoMemoryLeftError
from ktrace.lm.load import language_model
from ktrace.lm.memory import MORE_ROOM
from ktrace.lm.model import LanguageModel
from ktrace.terms import PUBLISHED_MEDIATORS, SITES
from ktrace.tracing.clean import clean_run
from ktrace.tracing.engine import Case, Engine, Scores, Use
from ktrace.tracing.engines import make_engine
from ktrace.tracing.measure import Subject, make_noise
from ktrace.tracing.mediators import Mediator, make_mediator
from ktrace.tracing.noise import Noise, RandomNoise
from ktrace.tracing.reference import ReferenceEngine
from ktrace.tracing.states import corrupted_states
from ktrace.tracing.suffix.engine import SuffixEngine
from ktrace.tracing.suffix.judge import judge
from ktrace.tracing.suffix.limits import MEASURED, Limits
from ktrace.tracing.suffix.memory import head_rows_that_fit, rows_that_fit
from tests.support.accelerator import GIB, Accelerator, mps_out_of_memory, out_of_memory
from tests.support.families import tiny_model
from tests.support.models import all_states, as_moved, known_case, loaded, micro_llama

NOISE = RandomNoise(1.0, samples=2)
MEDIATORS = [make_mediator(name, 2) for name in PUBLISHED_MEDIATORS]
# Calls of one size on every device, so that nothing but the device differs.
SAME = Limits(accelerator=MEASURED.cpu, pack_width=0)
HIDDEN = MEDIATORS[:1]
ROWS = 12
ROUNDING = 1e-5  # of metrics in float32, where batches have other sizes

# Of a case, by mediator's key and metric; "corrupted" beside the mediators.
Found = dict[int, dict[str, Scores]]


def suffix(lm: LanguageModel, noise: Noise) -> Engine:
    return SuffixEngine(lm, noise, ROWS, limits=SAME)


def packed(lm: LanguageModel, noise: Noise) -> Engine:
    return SuffixEngine(lm, noise, ROWS, packed=True, limits=SAME)


ENGINES = {"reference": ReferenceEngine, "suffix": suffix, "suffix-packed": packed}
every_engine = pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)


def traced(
    engine: Engine, cases: Sequence[Case], mediators: Sequence[Mediator] = MEDIATORS
) -> Found:
    """Everything that an engine says of a group."""
    found: Found = {
        case.index: {"clean": of.clean, "corrupted": of.corrupted}
        for case, of in engine.baseline(cases)
    }
    for case, restored in engine.restored(cases, mediators):
        found[case.index] |= restored
    return found


def some(cases: list[Case], make: Callable[..., Engine]) -> list[Case]:
    """The reference engine takes one case after the other, and its time."""
    return cases[:1] if make is ReferenceEngine else cases


def require_equal(ours: Found, theirs: Found) -> None:
    """To the bit."""
    for index, by_key in theirs.items():
        for key, by_metric in by_key.items():
            for metric, values in by_metric.items():
                np.testing.assert_array_equal(
                    ours[index][key][metric], values, err_msg=f"{key}, {metric}"
                )


@pytest.fixture(scope="module")
def on_cpu() -> LanguageModel:
    return language_model(micro_llama(3))


@pytest.fixture(scope="module")
def cases(on_cpu: LanguageModel) -> list[Case]:
    return [known_case(on_cpu, seed, 4, 1, 3) for seed in (1, 2)]


@pytest.fixture(scope="module")
def expected(on_cpu: LanguageModel, cases: list[Case]) -> Callable[[Callable[..., Engine]], Found]:
    """What an engine says on the CPU."""
    known: dict[Callable[..., Engine], Found] = {}

    def of(make: Callable[..., Engine]) -> Found:
        if make not in known:
            known[make] = traced(make(on_cpu, NOISE), some(cases, make))
            restored = known[make][1]["hidden"]["probability"]
            assert np.ptp(restored) > 0.1  # else every wrong number would look right
        return known[make]

    return of


@pytest.fixture
def cuda() -> Iterator[Accelerator]:
    with Accelerator("cuda", 2).here() as accelerator:
        yield accelerator


@pytest.fixture
def mps() -> Iterator[Accelerator]:
    with Accelerator("mps").here() as accelerator:
        yield accelerator


REFUSED: dict[str, tuple[Callable[[torch.Tensor], object], type[Exception], str]] = {
    "two devices": (lambda x: x + x.to("cuda:1"), RuntimeError, "found at least two devices"),
    "the CPU": (lambda x: x @ torch.ones(2), RuntimeError, "cuda:0 and cpu"),
    "the CPU within torch": (
        lambda x: nn.functional.layer_norm(x, (2,), torch.ones(2)),
        RuntimeError,
        "cuda:0 and cpu",
    ),
    "an index there": (lambda x: torch.ones(2)[x.long()], RuntimeError, "should be either on cpu"),
    "an index elsewhere": (
        lambda x: x.index_select(0, torch.tensor([0])),
        RuntimeError,
        "cuda:0 and cpu",
    ),
    "numpy": (lambda x: x.numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy"),
    "numpy, unasked": (lambda x: np.asarray(x), TypeError, "can't convert cuda:0"),
    "a third device": (lambda x: x.to("cuda:2"), RuntimeError, "invalid device ordinal"),
}


@pytest.mark.parametrize(("use", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_the_pretended_device_refuses_what_a_real_one_does(
    cuda: Accelerator,
    use: Callable[[torch.Tensor], object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        use(torch.ones(2, device="cuda"))


def test_tensors_are_where_torch_would_have_them(cuda: Accelerator) -> None:
    x = torch.ones(2, 3, device="cuda")
    first, second, cpu = (torch.device(name) for name in ("cuda:0", "cuda:1", "cpu"))
    there = [x, x + 1, x[0], x.new_zeros(2), torch.zeros_like(x), x.double(), x * torch.tensor(2.0)]
    there += [x[torch.tensor([0])], x.expand(4, 2, 3), torch.as_tensor(np.ones(2), device="cuda")]
    assert {tensor.device for tensor in there} == {first}
    moved = [x.to("cuda:1"), x.cuda(1), x.to(torch.ones(1, device="cuda:1")), x.to(1)]
    assert {tensor.device for tensor in moved} == {second}
    back = [x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), torch.ones(2), x.cpu() + 1]
    assert {tensor.device for tensor in back} == {cpu}
    layer = nn.Linear(3, 2)
    weight = layer.weight
    assert layer.to("cuda:1").weight is weight
    assert weight.device == layer(moved[0]).device == second
    with torch.device("cuda:1"):
        assert torch.arange(3).device == second
    copied = torch.ones(2)
    assert torch.as_tensor(copied, device="cuda").device == first
    assert copied.device == cpu


def test_mps_has_no_float64(mps: Accelerator) -> None:
    x = torch.ones(2, device="mps")
    assert x.device == torch.device("mps", 0)
    for use in (
        lambda: x.double(),
        lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
        lambda: torch.from_numpy(np.ones(2)).to("mps"),
    ):
        with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
            use()


@every_engine
@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_every_engine_gives_the_cpus_numbers(
    expected: Callable[..., Found], cases: list[Case], make: Callable[..., Engine], kind: str
) -> None:
    with Accelerator(kind).here():
        lm = language_model(micro_llama(3).to(kind))
        assert lm.device == torch.device(kind, 0)
        found = traced(make(lm, NOISE), some(cases, make))
    require_equal(found, expected(make))


@pytest.mark.parametrize("kind", [k for k in NoiseKind if k is not NoiseKind.pair])
def test_every_noise_is_the_cpus_on_mps(
    mps: Accelerator, on_cpu: LanguageModel, cases: list[Case], kind: NoiseKind
) -> None:
    lm = language_model(micro_llama(3).to("mps"))
    subjects = [
        Subject(ids, ids, str(ids), "", (answer,)) for answer, ids in enumerate([(4, 5), (7, 9)])
    ]
    config = NoiseConfig(kind=kind, samples=1)
    there, here = (make_noise(config, model, subjects) for model in (lm, on_cpu))
    assert there.sigma == here.sigma
    subject = torch.randn(2, lm.d_embedding, generator=torch.Generator().manual_seed(0))
    case = known_case(on_cpu, 0, 4, 1, 3)
    corrupted = there.noise.corrupt(case, subject.to("mps"))
    assert corrupted.device.type == "mps"
    assert torch.equal(corrupted.cpu(), here.noise.corrupt(case, subject))


def test_clean_runs_and_their_states_are_the_cpus(
    mps: Accelerator, on_cpu: LanguageModel, cases: list[Case]
) -> None:
    lm = language_model(micro_llama(3).to("mps"))
    ids, answer = cases[0].input_ids, cases[0].answer_ids
    kept = all_states(lm, len(ids))
    there, here = (clean_run(model, ids, answer, kept=kept) for model in (lm, on_cpu))
    assert (there.predicted_ids, there.probability) == (here.predicted_ids, here.probability)
    assert here.states.keys() == set(SITES)
    for site, states in here.states.items():
        assert np.array_equal(there.states[site].numpy(), states.numpy())
    noised, same = (corrupted_states(model, NOISE, cases[0], kept, 2) for model in (lm, on_cpu))
    for site, states in same.items():
        assert np.array_equal(noised[site].numpy(), states.numpy())


def spread(embedding: object, *layers: object, norm: object, head: object) -> dict[str, object]:
    """A `model.device_map` of a Llama."""
    body = {"embed_tokens": embedding, "rotary_emb": embedding, "norm": norm}
    body |= {f"layers.{layer}": place for layer, place in enumerate(layers)}
    return {**{f"model.{name}": place for name, place in body.items()}, "lm_head": head}


SPREAD: dict[str, Any] = {
    "by itself": "auto",
    "back and forth": spread("cuda:1", 0, 1, 0, norm=1, head=1),
    "the ends in memory": spread("cpu", 0, 1, 0, norm=1, head="cpu"),
    "all but a block in memory": spread("cpu", "cpu", 1, "cpu", norm=1, head="cpu"),
}
every_map = pytest.mark.parametrize("device_map", SPREAD.values(), ids=SPREAD)


@pytest.fixture(scope="module")
def whole(model_folder: Path) -> LanguageModel:
    return as_moved(loaded(model_folder, attention="eager"))


def in_short(lm: LanguageModel, cases: Sequence[Case]) -> list[Found]:
    """By each engine; the slow one restores one fact, by one mediator."""
    reference = traced(ReferenceEngine(lm, NOISE), cases[:1], MEDIATORS[1:2])
    return [reference, *(traced(make(lm, NOISE), cases) for make in (suffix, packed))]


@pytest.fixture(scope="module")
def of_whole(whole: LanguageModel, whole_cases: list[Case]) -> list[Found]:
    return in_short(whole, whole_cases)


@pytest.fixture(scope="module")
def whole_cases(whole: LanguageModel) -> list[Case]:
    return [known_case(whole, seed, 4, 1, 3) for seed in (1, 2)]


@every_map
def test_a_model_on_two_devices_gives_the_cpus_numbers(
    model_folder: Path, whole_cases: list[Case], of_whole: list[Found], device_map: Any
) -> None:
    with Accelerator("cuda", 2).here():
        lm = loaded(model_folder, attention="eager", device_map=device_map)
        assert lm.device.type == "cuda"
        found = in_short(lm, whole_cases)
    for ours, theirs in zip(found, of_whole, strict=True):
        require_equal(ours, theirs)


def test_suffixes_are_packed_on_two_devices_too(
    cuda: Accelerator, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's proof meets packs of several positions, where the model is wide enough."""
    wide = tiny_model("LlamaForCausalLM", hidden_size=96, num_hidden_layers=2)
    lm = language_model(dispatch_model(wide, spread(0, 1, 0, norm=1, head=0)))
    assert {weight.device.index for weight in lm.model.parameters()} == {0, 1}
    with caplog.at_level(logging.INFO):
        engine = make_engine(EngineConfig(), lm, NOISE, Use(MEDIATORS[1:2]), SAME)
    assert isinstance(engine, SuffixEngine)
    assert engine.packed, caplog.text


@pytest.mark.parametrize("fullest", [0, 1])
def test_rows_are_those_that_fit_on_the_fullest_device(
    cuda: Accelerator, model_folder: Path, fullest: int
) -> None:
    """Every row of a block call passes them all."""
    lm = loaded(model_folder, device_map=SPREAD["the ends in memory"])
    roomy = rows_that_fit(lm, 4, SAME)
    cuda.free = {fullest: GIB // 2**10}
    fitting = rows_that_fit(lm, 4, SAME)
    assert 1 < fitting < roomy / 4
    cuda.free = {0: GIB // 2**10, 1: GIB // 2**10}
    assert fitting == rows_that_fit(lm, 4, SAME)


def evenly(n_operations: int, times: int) -> list[int]:
    """The first and the last of so many operations, and some between."""
    return sorted({round(i * (n_operations - 1) / (times - 1)) for i in range(times)})


@pytest.mark.parametrize("make", [suffix, packed], ids=["suffix", "suffix-packed"])
def test_out_of_memory_at_one_of_four_operations_changes_no_number(
    cuda: Accelerator,
    cases: list[Case],
    expected: Callable[..., Found],
    make: Callable[..., Engine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run goes on with smaller batches, or it cannot and says so."""
    lm = language_model(micro_llama(3).to("cuda"))
    mediators = MEDIATORS[1:3]
    traced(make(lm, NOISE), cases, mediators)  # what is sent once for a shape is there
    before = cuda.n_operations
    traced(make(lm, NOISE), cases, mediators)
    n_operations = cuda.n_operations - before
    for number in evenly(n_operations, 4):
        caplog.clear()
        cuda.fails_at = [cuda.n_operations + number]
        emptied = cuda.emptied
        found = traced(make(lm, NOISE), cases, mediators)
        assert "out of memory: going on with engine.row_budget=" in caplog.text
        assert cuda.emptied > emptied  # what torch held is given back before the next try
        for index, by_key in found.items():
            for key, by_metric in by_key.items():
                for metric, values in by_metric.items():
                    whole = expected(make)[index][key][metric]
                    np.testing.assert_allclose(values, whole, rtol=0, atol=ROUNDING, err_msg=metric)


def test_batches_shrink_until_they_fit(
    cuda: Accelerator, cases: list[Case], expected: Callable[..., Found]
) -> None:
    """On a device with room for small tensors alone, in bits that hang on the batch alone."""
    lm = language_model(micro_llama(3).to("cuda"))
    engine = SuffixEngine(lm, NOISE, 64, limits=SAME)
    cuda.largest = ROWS * 4 * 48  # of inner states
    found = traced(engine, cases)
    cuda.largest = None
    assert 3 <= engine._row_budget < 64
    again = traced(SuffixEngine(lm, NOISE, engine._row_budget, limits=SAME), cases)
    for index, by_key in again.items():
        for mediator in MEDIATORS:
            np.testing.assert_array_equal(
                found[index][mediator.key]["logit"], by_key[mediator.key]["logit"]
            )


NO_MEMORY: dict[str, Callable[[], Exception]] = {
    "cuda": out_of_memory,
    "mps": mps_out_of_memory,
    "mps, one buffer": lambda: RuntimeError("Invalid buffer size: 20.00 GiB"),
    "cublas": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "the driver": lambda: torch.AcceleratorError("CUDA error: out of memory"),
    "the CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "numpy": lambda: MemoryError("Unable to allocate 7.45 GiB"),
}


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
def test_every_word_for_it_is_taken_for_out_of_memory(
    cuda: Accelerator, cases: list[Case], error: Callable[[], Exception]
) -> None:
    lm = language_model(micro_llama(3).to("cuda"))
    cuda.error = error
    cuda.fails_at = [cuda.n_operations + 100]
    engine = SuffixEngine(lm, NOISE, ROWS, limits=SAME)
    assert [case for case, _ in engine.baseline(cases)] == cases
    assert engine._row_budget < ROWS


def judged_anew(lm: LanguageModel) -> None:
    """The proof, which is kept for a model that is loaded."""
    judge(lm, Use(HIDDEN), SAME, Prove.always)


def test_out_of_memory_where_nothing_is_smaller_is_said_in_a_line(
    cuda: Accelerator, cases: list[Case]
) -> None:
    """From the first, a middle or the last operation on, of all that a run asks of a model."""
    model = micro_llama(2).to("cuda")
    lm = language_model(model)
    subject = Subject((4, 5), (4, 5), "", "", (6,))
    reference = ReferenceEngine(lm, NOISE)
    steps: dict[str, Callable[[], object]] = {
        "with prompts of a few tokens": lambda: language_model(model),
        "in the clean run of one prompt": lambda: clean_run(lm, cases[0].input_ids),
        "in the corrupted run of one sample": lambda: corrupted_states(
            lm, NOISE, cases[0], all_states(lm, 2), 2
        ),
        "while the noise is measured": lambda: make_noise(NoiseConfig(), lm, [subject]),
        "with one restoration at a time": lambda: list(reference.restored(cases[:1], HIDDEN)),
        "with one fact and one restoration at a time": lambda: traced(suffix(lm, NOISE), cases),
        "with a made-up prompt": lambda: judged_anew(lm),
    }
    for doing, step in steps.items():
        step()  # a device is told its indices once
        before = cuda.n_operations
        step()
        for number in evenly(cuda.n_operations - before, 3):
            cuda.fails_at = range(cuda.n_operations + number, sys.maxsize)
            with pytest.raises(NoMemoryLeftError, match=f"^out of memory {doing}.*: ") as raised:
                step()
            assert str(raised.value).endswith(MORE_ROOM)
            cuda.fails_at = ()


@pytest.mark.parametrize("keys", [{"device": "cuda"}, {"device_map": {"": 1}}], ids=str)
def test_a_model_that_does_not_fit_is_said_in_a_line(
    cuda: Accelerator, model_folder: Path, keys: dict[str, Any]
) -> None:
    lm = loaded(model_folder, **keys)
    n_weights = len(list(lm.model.parameters()))
    for number in range(0, n_weights, 7):
        cuda.fails_at = range(cuda.n_operations + number, sys.maxsize)
        doing = "while the model is loaded" if number else "(on model|while the model)"
        with pytest.raises(NoMemoryLeftError, match=f"^out of memory {doing}"):
            loaded(model_folder, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"device": "mps"}, "model.dtype=float64 cannot be on model.device=mps (Cannot convert a"),
        ({"device": "auto"}, "model.dtype=float64 cannot be on model.device=mps (Cannot convert a"),
        ({"device_map": {"": "mps"}}, "the model cannot be loaded: Cannot convert a MPS Tensor"),
    ],
    ids=str,
)
def test_float64_on_mps_is_refused_in_a_line(
    mps: Accelerator, model_folder: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(KtraceError, match=re.escape(message)) as raised:
        loaded(model_folder, dtype="float64", **keys)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_in_float64_is_refused_on_mps_too(
    mps: Accelerator, model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_folder, tmp_path / "wide")
    loaded(model_folder, dtype="float64", device="cpu").model.save_pretrained(tmp_path / "wide")
    with pytest.raises(KtraceError, match=r"^model.dtype=float64 cannot be on model\.device=mps"):
        loaded(tmp_path / "wide", dtype="auto", device="mps")


@pytest.mark.parametrize("mediators", [MEDIATORS, [make_mediator("head", 1)]], ids=["five", "head"])
def test_an_accelerator_is_waited_for_once_a_group_and_told_little(
    on_cpu: LanguageModel, cuda: Accelerator, mediators: list[Mediator]
) -> None:
    """Scores are copied at the end, all at once; indices were copied for the first group."""
    lm = language_model(micro_llama(3).to("cuda"))
    engine = SuffixEngine(lm, NOISE)
    sent = []
    for seed in (1, 3):
        group = [known_case(on_cpu, s, 6, 1, 3) for s in (seed, seed + 1)]
        cuda.waits.clear()
        cuda.sent = 0
        list(engine.restored(group, mediators))
        assert cuda.waits == ["copy"]
        sent.append(cuda.sent)
    # Token ids of two runs, each fact's noise, the answers; six more are transformers' own.
    assert sent[1] == 5 + 6 < sent[0]


def test_an_accelerator_gets_thousands_of_rows_for_its_head(cuda: Accelerator) -> None:
    lm = language_model(micro_llama(3).to("cuda"))
    assert head_rows_that_fit(lm, 2 * 128_256, MEASURED) == GIB // 32 // (2 * 128_256)
    assert head_rows_that_fit(lm, 2 * 96, MEASURED) == 8192
    assert head_rows_that_fit(language_model(micro_llama(3)), 2 * 96, MEASURED) == 256
