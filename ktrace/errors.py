"""The one exception that means "the user can mend this". Every room may raise it."""


class KtraceError(Exception):
    """What was given cannot be used: the message names the value, what was allowed and its key.

    The command line prints the message alone and exits 1; anything else that escapes is a bug and
    keeps its traceback.
    """
