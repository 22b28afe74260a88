"""What is said of a model and what is asked of it, before anything is run."""

import logging

import pytest

from ktrace.lm.model import LanguageModel
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
    [line] = caplog.messages
    assert line == (
        f"mlp-w{half}, attn-w10, knockout-w9: a window of {half} and 9 and 10 of {n_layers} layers "
        "hardly tells where; mediator.window=1 is as narrow as the published 10 of 48"
    )
