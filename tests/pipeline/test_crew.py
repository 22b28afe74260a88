"""What forked workers say, raise and leave."""

import errno
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable

import pytest

from ktrace.errors import KtraceError, NoMemoryLeftError
from ktrace.pipeline.crew import crew
from ktrace.pipeline.signals import ended_by_signals
from tests.support.runs import is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")

log = logging.getLogger("ktrace.tests")
Tell = Callable[[int], None]


def raising(error: Exception) -> Callable[[Tell], None]:
    def share(tell: Tell) -> None:
        raise error

    return share


def hear(count: int, share: Callable[[Tell], None]) -> list[int]:
    with crew(count, share) as told:
        return list(told)


def test_every_word_is_heard_until_all_have_ended() -> None:
    own = os.getpid()

    def share(tell: Tell) -> None:
        assert os.getpid() != own
        for number in range(3):
            tell(number)

    assert sorted(hear(2, share)) == [0, 0, 1, 1, 2, 2]
    assert hear(0, share) == []


def test_lines_and_warnings_of_several_are_said_once(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def share(tell: Tell) -> None:
        log.warning("out of memory: going on with %d", 4)
        log.warning("out of memory: going on with %d", 2)
        log.warning("out of memory: going on with %d", 2)  # one worker's own repetition
        warnings.warn("slow", UserWarning, stacklevel=1)

    hear(3, share)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: going on with 4",
        *["out of memory: going on with 2"] * 2,
    ]
    assert [str(warning.message) for warning in recwarn] == ["slow"]


def test_what_nobody_listens_to_is_not_shown_by_the_worker_either(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A library's logger with a handler of its own."""
    own = logging.getLogger("ktrace.tests.library")
    handler = logging.StreamHandler()
    own.addHandler(handler)
    try:
        hear(2, lambda tell: own.warning("once"))
    finally:
        own.removeHandler(handler)
    assert capfd.readouterr().err == "once\n"


def test_an_error_comes_as_in_one_process() -> None:
    with pytest.raises(KtraceError, match=r"^known_id=3: no$"):
        hear(2, raising(KtraceError("known_id=3: no")))


def test_memory_that_ran_out_names_the_workers_too() -> None:
    with pytest.raises(NoMemoryLeftError, match=r"^full; or fewer workers \(engine\.workers=2\)$"):
        hear(2, raising(NoMemoryLeftError("full")))


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        hear(2, lambda tell: tell(1 // 0))
    assert "tell(1 // 0)" in str(raised.value.__cause__)


class _NotSentError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_exception_that_cannot_be_sent_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="_NotSentError: 1 and 2"):
        hear(1, raising(_NotSentError(1, 2)))


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was ended by SIGTERM"),
        (lambda: os._exit(3), "ended with code 3"),
    ],
)
def test_a_worker_that_ends_without_a_word_is_missed(end: Callable[[], None], how: str) -> None:
    with pytest.raises(KtraceError, match=rf"^engine\.workers=2: one of them {how}"):
        hear(2, lambda tell: end())


def test_a_process_that_cannot_be_started_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And those that were started end."""
    started, fork = [], os.fork

    def forked() -> int:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(fork())
        return started[0]

    monkeypatch.setattr(os, "fork", forked)
    with pytest.raises(KtraceError, match=r"^engine\.workers: another .*\(Resource temporarily"):
        hear(2, lambda tell: time.sleep(60))
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_between_two_forks_leaves_none_of_them(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    started, fork = [], os.fork

    def forked() -> int:
        pid = fork()
        if pid:
            started.append(pid)
            os.kill(os.getpid(), number)
        return pid

    monkeypatch.setattr(os, "fork", forked)
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        hear(2, lambda tell: time.sleep(60))
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_leaving_ends_workers_that_are_not_done() -> None:
    began = time.monotonic()
    with crew(2, lambda tell: (tell(os.getpid()), time.sleep(60))) as told:
        pids = [next(told), next(told)]
    assert time.monotonic() - began < 30
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_hears_nothing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused, or stuck where no handler of a signal runs."""
    monkeypatch.setattr("ktrace.pipeline.crew._GRACE_SECONDS", 0.1)
    with crew(2, lambda tell: (tell(os.getpid()), time.sleep(60))) as told:
        pids = [next(told), next(told)]
        os.kill(pids[0], signal.SIGSTOP)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_with_a_parent_that_is_killed() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def lead() -> None:
        with crew(2, lambda tell: (sender.send(os.getpid()), time.sleep(60))) as told:
            list(told)

    parent = multiprocessing.get_context("fork").Process(target=lead)
    parent.start()
    pids = [receiver.recv(), receiver.recv()]
    assert all(map(is_alive, pids))
    parent.kill()
    parent.join()
    until = time.monotonic() + 20
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(is_alive, pids))


def test_the_parents_signals_and_environment_are_as_before() -> None:
    before = (
        signal.getsignal(signal.SIGTERM),
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        os.environ.get("TOKENIZERS_PARALLELISM"),
    )
    hear(1, lambda tell: None)
    assert before == (
        signal.getsignal(signal.SIGTERM),
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        os.environ.get("TOKENIZERS_PARALLELISM"),
    )
