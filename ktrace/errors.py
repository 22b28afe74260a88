"""Every exception that ktrace raises of its own.

    Exception
    ├── KtraceError              what was given cannot be used: a person can mend it
    │   └── NoSuchHubFileError   the hub has the repository, but not this file in it
    └── DamagedPartError         a part is truncated, altered, or no part: stores set it aside
    KeyboardInterrupt
    └── Terminated               SIGTERM: what is finished is kept

The command line prints the message of a `KtraceError` alone and exits 1. Anything else that escapes
is a bug and keeps its traceback.
"""


class KtraceError(Exception):
    """What was given cannot be used: the message names the value, what was allowed and its key."""


class NoSuchHubFileError(KtraceError):
    """The hub has the repository, but not this file in it."""


class DamagedPartError(Exception):
    """A part is truncated, altered, or not a part at all."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a job manager or a shutdown ends this run; what is finished is kept."""
