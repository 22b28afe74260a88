"""Heads, edges and pairs: shards and runs that go on store what one run stores, bit by bit."""

from pathlib import Path

import pytest

from ktrace.config.compose import composed
from ktrace.pipeline.run import run
from tests.support.runs import contents

pytestmark = pytest.mark.usefixtures("no_proof", "no_figures")

EDGES = ("mediator=knockout", "mediator.window=[2,1]", "stage=restore")
STATES = ("mediator.names=[head,hidden]", "mediator.direction=[noise,denoise]", "stage=restore")


def facts_of(own: tuple[str, ...], noise: str) -> tuple[str, ...]:
    """Of the random model with noise, or of the embedded one with pairs of prompts."""
    if noise == "pair":
        return ("noise=pair", "dataset=pairs", "dataset.limit=8")
    return (*own, "noise.samples=2")


@pytest.mark.parametrize("asked", [EDGES, STATES], ids=["edges", "states"])
@pytest.mark.parametrize("noise", ["gaussian", "pair"])
def test_shards_and_what_goes_on_are_one_run(
    noise: str, asked: tuple[str, ...], own: tuple[str, ...], tmp_path: Path
) -> None:
    facts = facts_of(own, noise)

    def stored(name: str, *more: str) -> Path:
        output = f"output_dir={tmp_path / name}"
        return run(composed([*facts, *asked, output, *more])).folder

    whole = contents(stored("whole"))
    for number in (1, 2):
        sharded = stored("sharded", f"shard={number}/2")
        assert len(contents(sharded)) < len(whole) or number == 2
    assert contents(sharded) == whole
    begun = contents(stored("going on", "dataset.limit=3"))
    assert 0 < len(begun) < len(whole)
    assert contents(stored("going on")) == whole
    stores = {place for place, _ in whole if "/restored/" in place}
    keys = {place.rpartition("/")[2] for place in stores}
    assert keys == (
        {"knockout-w1", "knockout-w2"}
        if asked is EDGES
        else {"head", "head-noise", "hidden", "hidden-noise"}
    )
