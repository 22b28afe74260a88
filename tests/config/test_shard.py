"""`shard=auto` is what the launcher says of this task."""

from collections.abc import Mapping

import pytest

from ktrace.config.compose import composed
from ktrace.config.shard import resolved_shard
from ktrace.errors import KtraceError
from tests.support.configs import refusal

SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "8"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (SLURM, "3/8"),
        (TORCHRUN, "3/8"),
        ({**SLURM, **TORCHRUN}, "3/8"),
        ({**SLURM, "RANK": "1"}, "3/8"),  # of something else: no size belongs to it
        ({"RANK": "0", "WORLD_SIZE": "1"}, "1/1"),
        ({"RANK": "07", "WORLD_SIZE": "08"}, "8/8"),
    ],
)
def test_auto_is_the_place_among_the_launchers_tasks(
    environment: Mapping[str, str], shard: str
) -> None:
    assert resolved_shard("auto", environment) == shard


@pytest.mark.parametrize("text", ["2/3", "1/1", "nonsense"])
def test_what_is_given_stays(text: str) -> None:
    assert resolved_shard(text, SLURM) == text


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "shard=auto: this environment has no SLURM_PROCID and SLURM_NTASKS, nor RANK and WOR"),
        ({"RANK": "1"}, "shard=auto: this environment has no SLURM_PROCID and SLURM_NTASKS, nor"),
        (
            {**SLURM, "RANK": "3", "WORLD_SIZE": "8"},
            "shard=auto: SLURM_PROCID=2 and SLURM_NTASKS=8, but RANK=3 and WORLD_SIZE=8: unset",
        ),
        ({"RANK": "8", "WORLD_SIZE": "8"}, "shard=auto: RANK=8 and WORLD_SIZE=8 number no task"),
        ({"RANK": "-1", "WORLD_SIZE": "8"}, "shard=auto: RANK=-1 and WORLD_SIZE=8 number no"),
        ({"RANK": "x", "WORLD_SIZE": ""}, "shard=auto: RANK=x and WORLD_SIZE= number no task"),
        # One that is right does not hide one that is wrong.
        ({**SLURM, "RANK": "x", "WORLD_SIZE": "8"}, "shard=auto: RANK=x and WORLD_SIZE=8 number"),
    ],
)
def test_what_tells_nothing_is_refused(environment: Mapping[str, str], told: str) -> None:
    with pytest.raises(KtraceError) as raised:
        resolved_shard("auto", environment)
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


def test_the_config_holds_what_it_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SLURM, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    assert "shard=auto" in refusal("shard=auto")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert composed(["shard=auto"]).shard == "3/8"
