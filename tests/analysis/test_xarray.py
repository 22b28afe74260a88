"""A run as labelled arrays."""

import sys
from pathlib import Path

import numpy as np
import pytest

import ktrace
from ktrace.errors import KtraceError
from tests.support.stores import (
    CANDIDATES,
    FACTS,
    clean_scores,
    known_id,
    p_corrupted,
    p_restored,
    write_run,
)


def test_every_score_has_its_place(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    run = write_run(tmp_path).run
    found = ktrace.to_xarray(run, metric="logit_difference")
    assert set(found.data_vars) == {"hidden", "mlp-w3", "clean", "corrupted"}
    for key in ("hidden", "mlp-w3"):
        assert found[key].dims == ("fact", "sample", "layer", "position")
        assert found[key].dtype == np.float32
        for index in CANDIDATES:
            n_positions = len(FACTS[index].tokens)
            one = found[key].sel(fact=known_id(index))
            expected = p_restored(index, key) + np.float32(3)  # as stores.write_restored has it
            np.testing.assert_array_equal(one[..., :n_positions], expected)
            assert np.isnan(one[..., n_positions:]).all()
            assert one["token"].values.tolist()[:n_positions] == list(FACTS[index].tokens)
            assert one["role"].values.tolist()[:n_positions] == list(FACTS[index].roles)
            assert one["prompt"].item() == "".join(FACTS[index].tokens)
            corrupted = found["corrupted"].sel(fact=known_id(index))
            np.testing.assert_array_equal(corrupted, p_corrupted(index) + np.float32(3))
            clean = found["clean"].sel(fact=known_id(index))
            np.testing.assert_array_equal(clean, clean_scores(index, "logit_difference"))
    effects = found["hidden"] - found["corrupted"]
    last = effects.where(effects["role"] == "last").mean("sample").sum("position")
    average = ktrace.average(run, metric="logit_difference")
    row = average.query("mediator == 'hidden' and role == 'last' and layer == 1")["aie"].item()
    assert last.sel(layer=1).mean().item() == pytest.approx(row, abs=1e-6)
    assert ktrace.to_xarray(run, limit=2).sizes["fact"] == 2


def test_what_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path).run
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "xarray", None)
        with pytest.raises(KtraceError, match=r"needs xarray: pip install 'ktrace\[xarray\]'"):
            ktrace.to_xarray(run)
    pytest.importorskip("xarray")
    with pytest.raises(KtraceError, match="metric 'accuracy' is unknown"):
        ktrace.to_xarray(run, metric="accuracy")
