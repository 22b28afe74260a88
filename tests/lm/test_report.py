"""What transformers shows while it loads goes to whoever is told, and nothing to stderr."""

import pytest
from transformers.utils import logging as library

from ktrace.lm.report import own_report

TOLD = [(0, 2), (1, 2), (2, 2)]


def test_bars_of_transformers_are_told_in_both_of_their_forms(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[tuple[int, int]] = []
    outside = library.get_verbosity()
    with own_report(lambda done, total: told.append((done, total))):
        assert list(library.tqdm({"a": 1, "b": 2}.items(), desc="Loading weights")) == [
            ("a", 1),
            ("b", 2),
        ]
        assert told == TOLD
        told.clear()
        with library.tqdm(total=2, desc="Loading weights") as bar:
            bar.update()
            bar.update(1)
            bar.set_postfix({"Materializing param": "x"})
        assert told == TOLD
    told.clear()
    assert list(library.tqdm([1, 2])) == [1, 2]
    assert told == []
    assert library.get_verbosity() == outside
    assert "Loading" not in capsys.readouterr().err
