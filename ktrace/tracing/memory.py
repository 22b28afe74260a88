"""How many rows fit into memory, and whether they did not."""

import os

import torch

from ktrace.lm.load import LanguageModel

_SHARE = 0.5  # of what is free: the estimate is rough, and others use the machine too
_MOST_ROWS = 4096
# glibc gives larger blocks back to the system whenever they are freed; to fault their pages in
# again costs more than larger batches gain.
_LARGEST_CPU_BLOCK = 32 * 2**20


def rows_that_fit(lm: LanguageModel, n_positions: int) -> int:
    """Rows of `n_positions` that one block call can hold, by a rough count of what it allocates."""
    config = lm.model.config.get_text_config()
    d_model = lm.d_embedding
    d_inner = int(getattr(config, "intermediate_size", None) or 4 * d_model)
    # Inputs, outputs, residuals, queries, keys and values, and the MLP's inner states and gates.
    numbers = n_positions * (10 * d_model + 4 * d_inner)
    size = torch.finfo(lm.model.dtype).bits // 8
    rows = min(_MOST_ROWS, int(_SHARE * _free_bytes(lm.device) / (numbers * size)))
    if lm.device.type == "cpu":
        rows = min(rows, int(_LARGEST_CPU_BLOCK / (n_positions * d_inner * size)))
    return max(1, rows)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds without using counts as free.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 4 * 2**30


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
