"""`shard=k/n`, and `shard=auto`: what the launcher says of this task among its tasks."""

import re
from collections.abc import Mapping

from ktrace.errors import KtraceError

# Where launchers say which of a job's tasks this is, from 0, and how many there are: srun, and
# torchrun and whoever names them like it.
_LAUNCHERS = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))


def parse_shard(text: str) -> tuple[int, int]:
    """The k and n of `shard=k/n`.

    Raises:
        KtraceError: it is not of that form, or k is not from 1 to n.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise KtraceError(
            f"shard={text!r} is out of range: k/n with k from 1 to n, such as 1/8 and 8/8, or auto"
        )
    return number, count


def resolved_shard(text: str, environment: Mapping[str, str]) -> str:
    """`k/n` of `auto`, and anything else as it is.

    Args:
        text: `shard` as it was given.
        environment: variables of this process.

    Raises:
        KtraceError: no launcher says which task this is, or two say different things.
    """
    if text != "auto":
        return text
    told = {
        f"{task}={environment[task]} and {tasks}={environment[tasks]}": _of(
            environment[task], environment[tasks]
        )
        for task, tasks in _LAUNCHERS
        if task in environment and tasks in environment
    }
    if not told:
        names = ", nor ".join(f"{task} and {tasks}" for task, tasks in _LAUNCHERS)
        raise KtraceError(
            f"shard=auto: this environment has no {names}, by which srun and torchrun number their "
            "tasks: start it by one of them, or give shard=k/n"
        )
    for said, shard in told.items():
        if shard is None:
            raise KtraceError(
                f"shard=auto: {said} number no task: from 0 to one less than there are; or give "
                "shard=k/n"
            )
    if len(set(told.values())) > 1:
        raise KtraceError(
            f"shard=auto: {', but '.join(told)}: unset the wrong ones, or give shard=k/n"
        )
    return str(next(iter(told.values())))


def _of(task: str, tasks: str) -> str | None:
    if not all(re.fullmatch("[0-9]{1,6}", text) for text in (task, tasks)):
        return None
    return f"{int(task) + 1}/{int(tasks)}" if int(task) < int(tasks) else None
