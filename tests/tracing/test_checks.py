"""What is said of a model and what is asked of it, before anything is run."""

import logging

import pytest

from ktrace.lm.model import LanguageModel, usual_window
from ktrace.tracing.checks import say_wide_windows
from ktrace.tracing.mediators import make_mediator


def test_a_window_of_half_of_the_layers_is_said(
    llama: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    """In a line; what takes one layer at a time has no window, and a narrow one is fine."""
    n_layers = llama.n_layers
    half = -(-n_layers // 2)
    fine = [make_mediator("hidden", 10), make_mediator("mlp", half - 1)]
    with caplog.at_level(logging.WARNING):
        say_wide_windows(llama, fine)
        assert caplog.messages == []
        wide = [make_mediator("mlp", half), make_mediator("attn", 10), make_mediator("knockout", 9)]
        say_wide_windows(llama, [*fine, *wide])
        say_wide_windows(llama, wide, key="window")
    line, of_python = caplog.messages
    assert "hardly tells where; window=1 is as narrow" in of_python
    assert line == (
        f"mlp-w{half}, attn-w10, knockout-w9: a window of {half} and 9 and 10 of {n_layers} layers "
        "hardly tells where; mediator.window=1 is as narrow as the published 10 of 48"
    )


def test_the_usual_window_is_that_of_the_presets() -> None:
    """About a fifth of the layers as in docs/models.md; the published one from 24 layers on."""
    found = {n: usual_window(n) for n in (1, 3, 6, 12, 16, 23, 24, 48, 80)}
    assert found == {1: 1, 3: 1, 6: 1, 12: 3, 16: 3, 23: 5, 24: 10, 48: 10, 80: 10}
