"""How many rows fit into memory."""

import torch

from ktrace.lm.model import LanguageModel
from ktrace.tracing.suffix.limits import Limits

_SHARE = 0.5  # of what is free: the estimate is rough, and others use the device too
_MOST_ROWS = 4096
# glibc gives larger blocks back to the system whenever they are freed; to fault their pages in
# again costs more than larger batches gain.
_LARGEST_CPU_BLOCK = 32 * 2**20
# Of what is free, for logits: scores take some five times as much, in float32.
_LOGITS_SHARE = 1 / 32
# On a CPU more than enough tokens are taken only as long as their states stay in a cache.
_CACHED_BLOCK = 8 * 2**20


def rows_that_fit(lm: LanguageModel, n_positions: int, limits: Limits) -> int:
    """Rows of `n_positions` that one block call can hold.

    On a CPU it follows from the shapes alone, so that the same facts give the same bits however
    much memory is free; it asks for little. On an accelerator it is a rough count of what a block
    call allocates, against what is free: of several, where least is, as every row passes them all.
    """
    size = torch.finfo(lm.model.dtype).bits // 8
    accelerators = lm.accelerators
    if not accelerators:
        cached, largest = (b // (lm.d_inner * size) for b in (_CACHED_BLOCK, _LARGEST_CPU_BLOCK))
        rows = min(max(cached, limits.cpu.tokens), largest) // n_positions
    else:
        # Inputs, outputs, residuals, queries, keys and values, and the MLP's inner states, gates.
        numbers = n_positions * (10 * lm.d_embedding + 4 * lm.d_inner)
        free = min(_free_bytes(device) for device in accelerators)
        rows = int(_SHARE * free / (numbers * size))
    return min(_MOST_ROWS, max(1, rows))


def head_rows_that_fit(lm: LanguageModel, row_bytes: int, limits: Limits) -> int:
    """Rows that logits are taken of together, of so many bytes each; likewise."""
    accelerators = lm.accelerators
    room = _LARGEST_CPU_BLOCK
    if accelerators:
        room = int(_LOGITS_SHARE * min(_free_bytes(device) for device in accelerators))
    return max(1, min(limits.enough(lm.device).head_rows, room // row_bytes))


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 4 * 2**30
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds without using counts as free.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
