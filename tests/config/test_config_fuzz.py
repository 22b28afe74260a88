"""Wrong overrides, one by one: each is one line that gives a reason, exit code 1 and no trace.

`test_cli_errors.py` holds the words of the messages; here the width counts. A new kind of mistake
is a new line of the list.
"""

from pathlib import Path

import pytest

from tests.conftest import Ktrace, refused

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
mediator.names=[[hidden]]
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
metric=accuracy
stage=train
stage=[all]
model=null
roles=rome
"""

UNKNOWN = """
model.name.first=x
noise.sigma=3
+model.modules.norm=x
dataset.limit.first=3
+seed=1
model=../tiny
model=/etc/passwd
mediator=hidden,
noise=noise/gaussian
engine=gpu
+model=gpt2
~noise.samples
~model
~nothing
--config-name=none
--config-dir=none
hydra.nothing=1
hydra.verbose=[
"""

OUT_OF_RANGE = """
model.window=0
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
model.name=???
dataset.name=../x
dataset.name=
dataset.name=x/../../y
dataset.name=???
dataset.path=
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
model.path=
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
output_dir=???
"""

UNREADABLE = """
=3
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
    f"noise.seed={'9' * 5000}",
    f"noise.std={'9' * 400}",
]


def test_the_list_is_long() -> None:
    assert len(WRONG) == len(set(WRONG)) >= 120


@pytest.mark.parametrize("overrides", WRONG, ids=lambda text: text[:60])
def test_it_is_one_line_and_writes_nothing(
    ktrace: Ktrace, own: tuple[str, ...], overrides: str, in_folder: Path
) -> None:
    quoted = '"' in overrides or "'" in overrides
    refused(ktrace(*own, *([overrides] if quoted else overrides.split(" "))))
    assert not list(in_folder.iterdir())
