"""When memory runs out: one line that says what to change."""

from __future__ import annotations

import torch

REMEDY = (
    "records so far are kept; give a smaller model.max_prompt or prefill_chunk, device=balanced to use all GPUs, "
    "or dtype=bfloat16"
)


def explain_out_of_memory(error: Exception, what: str) -> None:
    """Raise MemoryError, in one line, if `error` is any of the forms in which memory runs out; else do nothing.

    what: was being done.
    """
    text = str(error)
    out = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
    )
    if out:
        raise MemoryError(f"out of memory on {what}; {REMEDY}") from error
