"""Every exception that ktrace raises of its own.

    Exception
    ├── KtraceError              what was given cannot be used: a person can mend it
    │   ├── NoSuchHubFileError   the hub has the repository, but not this file in it
    │   ├── NoFactsError         records of a file are no facts
    │   ├── NoMemoryLeftError    not even one fact fits: the smallest step has been tried
    │   └── NotReplayedError     the blocks of this model cannot be called again: engine=reference
    │       └── NotCachedError   a block asks its cache for more; an AttributeError, too
    └── DamagedPartError         a part is truncated, altered, or no part: stores set it aside
        └── GonePartError        it was there a moment ago: set aside, or merged into another
    KeyboardInterrupt
    └── Terminated               SIGTERM: what is finished is kept

The command line prints the message of a `KtraceError` alone and exits 1. Anything else that escapes
is a bug and keeps its traceback.
"""

from collections.abc import Sequence

from ktrace.redaction import redacted


class KtraceError(Exception):
    """What was given cannot be used: the message names the value, what was allowed and its key.

    It tells no secret: see `ktrace.redaction`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class NoSuchHubFileError(KtraceError):
    """The hub has the repository, but not this file in it."""


class NoFactsError(KtraceError):
    """Records of a file that are no facts.

    Attributes:
        complaints: one for each such record, in their order; the first is the message.
        n_records: how many the file holds.
    """

    def __init__(self, complaints: Sequence[str], n_records: int) -> None:
        super().__init__(complaints[0])
        self.complaints, self.n_records = complaints, n_records

    def __reduce__(self) -> tuple[type["NoFactsError"], tuple[Sequence[str], int]]:
        return type(self), (self.complaints, self.n_records)


class NoMemoryLeftError(KtraceError):
    """Not even one fact with one restoration at a time fits into memory."""


class NotReplayedError(KtraceError):
    """The suffix engine cannot call a model's blocks again: the reference engine can serve it."""


class NotCachedError(NotReplayedError, AttributeError):
    """A replayed block asks its cache for something that this does not hold.

    As an `AttributeError` it leaves `hasattr`, and `getattr` with a default, to work as ever.
    """


class DamagedPartError(Exception):
    """A part is truncated, altered, or not a part at all."""


class GonePartError(DamagedPartError):
    """A part that was listed is no longer there."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a job manager or a shutdown ends this run; what is finished is kept."""
