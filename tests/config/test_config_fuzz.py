"""Wrong overrides, one by one: each is one line that gives a reason, and leaves no trace.

`tests/test_cli_errors.py` holds the words of the messages; here the width counts. A new kind of
mistake is a new line of the list. They are composed, checked and run in this process, as the
command does behind its door; what passes through the door itself is `THROUGH_THE_DOOR`.
"""

from pathlib import Path

import pytest

from tests.support.command import Ktrace, refused
from tests.support.configs import refusal

WRONG_TYPES = """
model.name=null
model.name=[a]
model.path=[a,b]
model.dtype=null
model.dtype=Float32
model.quantization=int16
model.attention=[eager]
model.trust_remote_code=maybe
model.allow_pickle=perhaps
model.window=ten
model.modules=none
model.modules=[a,b]
model.modules.block=[1]
mediator.names=hidden
mediator.names={a:1}
mediator.names=[5]
noise.kind=normal
noise.multiple=3,5x
noise.std=wide
noise.samples=1.5
noise.samples=1e3
noise.replace=sometimes
noise.degrees=few
dataset.sha256={a:1}
engine.row_budget=lots
activations=all
activations.clean=hidden
activations.clean=null
activations.clean=[[hidden]]
activations.corrupted=all
activations.layers=3
activations.layers=[last]
activations.positions=null
activations.positions={last:1}
activations.positions=[[last]]
activations.samples=few
metric=accuracy
stage=train
stage=[all]
roles=rome
"""

UNKNOWN = """
model.name.first=x
noise.sigma=3
+model.modules.norm=x
dataset.limit.first=3
activations.sites=[mlp]
+seed=1
model=/etc/passwd
mediator=hidden,
noise=noise/gaussian
engine=gpu
+model=gpt2
~noise.samples
~model
~nothing
"""

OUT_OF_RANGE = """
noise.multiple=nan
noise.std=-0.5
noise.std=nan
noise.samples=100000000000000000000
noise.seed=-1
noise.seed=4294967296
noise.degrees=0
noise.degrees=nan
noise.foil=replacement
noise.foil=answer
engine.row_budget=0
activations.clean=[head]
activations.layers=[]
activations.layers=[-1]
activations.layers=[0,99]
activations.positions=[]
activations.positions=last
activations.positions=[first]
activations.samples=0
model.device=meta
model.device=cuda:77
model.device=cuda:-1
model.device=fpga
model.device=
model.device=privateuseone
dataset.sha256=0123
noise.kind=zero
noise.kind=multivariate noise.std=1
noise.multiple=3 noise.std=1
noise=zero noise.multiple=3
noise=mean noise.replace=true
model.device=cpu model.device_map=auto
model.device_map=everywhere
model.device_map={"":nowhere}
model.device_map=[1]
model.device_map=true
model.device_map=cuda:77
model.device_map={}
model.device_map={model:[1]}
model.device_map={layers:cpu}
model.device_map={0:cpu}
model.device_map={model.embed_tokens:disk}
model.modules.block=a
model.modules.embedding=nowhere model.modules.block=a model.modules.attn=b model.modules.mlp=c
"""

PATHS = """
model.name=..
model.name=
model.name=/tmp/x
model.name="a\\\\b"
model.name=.hidden
model.name="a b"
model.name=ünï
model.name=${oc.env:NO_SUCH_VARIABLE}
dataset.name=../x
dataset.name=
dataset.name=x/../../y
dataset.name=???
dataset.path=..
dataset.path=/
dataset.path=/dev/null
dataset.path=nothing.jsonl
dataset.path=nothing.txt
dataset.path="~no_such_user/a.jsonl"
dataset.path=http://example.org/a.jsonl
dataset.path=${bundled:nothing.jsonl}
dataset.path=???
dataset.path=nothing.jsonl dataset.url=file:///etc/passwd
dataset.path=nothing.jsonl dataset.url=nonsense
model.path=/
model.path=/dev/null
model.path=./nothing
model.path="~no_such_user/x"
model.path=a/b/c
model.path=nobody/nothing
model.path=https://huggingface.co/gpt2
model.path=${nothing}
output_dir=/dev/null
output_dir=/proc/x
output_dir="~/results"
"""

UNREADABLE = """
noise.samples==3
noise.samples=
noise.samples="3
noise.samples=3;noise.seed=1
@noise=zero
noise@=zero
noise.samples=range(1,3)
noise.samples=int(abc)
model.name=\\
"""


def listed(text: str) -> list[str]:
    return text.strip().splitlines()


WRONG = [
    *listed(WRONG_TYPES),
    *listed(UNKNOWN),
    *listed(OUT_OF_RANGE),
    *listed(PATHS),
    *listed(UNREADABLE),
    *(f"{key}={'x' * 5000}" for key in ("model.name", "model.path", "dataset.path", "output_dir")),
    f"dataset.path={'x' * 5000}.jsonl dataset.name=x",
    f"model.path={'x' * 5000} model.name=x",
]

# What Hydra reads before there is a config, or answers with errors that are not its own; and of
# every list above some that the whole command refuses in the same words.
THROUGH_THE_DOOR = [
    "=3",
    "--config-name=none",
    "--config-dir=none",
    "hydra.nothing=1",
    "hydra.verbose=[",
    f"noise.seed={'9' * 5000}",
    f"noise.std={'9' * 400}",
]
ALSO_THERE = [
    "noise.samples=1.5",
    "~nothing",
    "noise.kind=multivariate noise.std=1",
    "model.device=cuda:77",
    "dataset.name=x/../../y",
    "dataset.path=nothing.jsonl",
    "model.path=${nothing}",
    'noise.samples="3',
]


def arguments(overrides: str) -> list[str]:
    quoted = '"' in overrides or "'" in overrides
    return [overrides] if quoted else overrides.split(" ")


def test_the_list_is_long() -> None:
    assert len(WRONG) == len(set(WRONG)) >= 120
    assert set(ALSO_THERE) < set(WRONG)


@pytest.mark.parametrize("overrides", WRONG, ids=lambda text: text[:60])
def test_it_is_one_line_and_writes_nothing(
    own: tuple[str, ...], overrides: str, in_folder: Path
) -> None:
    assert "\n" not in refusal(*own, *arguments(overrides))
    assert not list(in_folder.iterdir())


@pytest.mark.parametrize("overrides", [*THROUGH_THE_DOOR, *ALSO_THERE], ids=lambda text: text[:60])
def test_the_command_exits_1_with_that_line(
    ktrace: Ktrace, own: tuple[str, ...], overrides: str, in_folder: Path
) -> None:
    ended = ktrace(*own, *arguments(overrides))
    refused(ended)
    if overrides in ALSO_THERE:
        assert ended.stderr == f"ktrace: {refusal(*own, *arguments(overrides))}\n"
    assert not list(in_folder.iterdir())
