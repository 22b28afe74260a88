"""A signal ends a run even where Python drops the exception that it raised."""

import os
import signal

import pytest

from ktrace.errors import Terminated
from ktrace.pipeline.signals import ended_by_signals, raise_if_signalled
from tests.support.signals import signalled_where_it_is_dropped

NUMBERS = [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]


@pytest.mark.parametrize(("number", "raised"), NUMBERS)
def test_a_signal_raises(number: int, raised: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(raised), ended_by_signals():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    raise_if_signalled()  # nothing is left of it


@pytest.mark.parametrize(("number", "raised"), NUMBERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_exception_is_raised_between_facts(
    number: int, raised: type[BaseException]
) -> None:
    with ended_by_signals():
        raise_if_signalled()
        signalled_where_it_is_dropped(number)
        with pytest.raises(raised):
            raise_if_signalled()


@pytest.mark.parametrize(("number", "raised"), NUMBERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_job_within_a_sweep_does_not_forget_it(number: int, raised: type[BaseException]) -> None:
    with ended_by_signals():
        with ended_by_signals():
            signalled_where_it_is_dropped(number)
        with ended_by_signals(), pytest.raises(raised):
            raise_if_signalled()


def test_an_ignored_sigint_stays_ignored() -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
            raise_if_signalled()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
