"""A signal at the worst moment."""

import os
import weakref


class _Thing:
    """Can be referred to weakly."""


def signalled_where_it_is_dropped(number: int) -> None:
    """Signal this process while a weak reference's callback runs, whose exceptions Python drops."""
    thing = _Thing()
    kept = weakref.ref(thing, lambda reference: os.kill(os.getpid(), number))
    del thing
    assert kept() is None
