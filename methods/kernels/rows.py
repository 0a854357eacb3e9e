"""A new token's K and V into their buffers, with its position: one launch for what would be two or three."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


def put_rows(
    k: Tensor,
    v: Tensor,
    new_k: Tensor,
    new_v: Tensor,
    place: Tensor,
    positions: Tensor | None = None,
    now: Tensor | None = None,
) -> None:
    """Write new_k, new_v [G,D] to row `place` of k, v [G,C,D]; place int64, 0-d for all KV heads or [G].

    With positions int64 [G,C] and now int64 0-d, `now` goes to that place of positions, too. All on the device; k, v
    and positions may be views; place is not checked.
    """
    num_kv_heads, dim = new_k.shape
    assert k.stride(2) == v.stride(2) == new_k.stride(1) == new_v.stride(1) == 1
    assert (positions is None) == (now is None) and (positions is None or positions.stride(1) == 1)
    put_kernel[(num_kv_heads,)](
        k, v, new_k, new_v, place, positions, now, k.stride(0), k.stride(1), v.stride(0), v.stride(1), new_k.stride(0),
        new_v.stride(0), place.stride(0) if place.dim() else 0, 0 if positions is None else positions.stride(0),
        DIM=dim, DIMS=triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip


@triton.jit
def put_kernel(
    k: tl.tensor,
    v: tl.tensor,
    new_k: tl.tensor,
    new_v: tl.tensor,
    place: tl.tensor,
    positions: tl.tensor | None,
    now: tl.tensor | None,
    k_head_stride: tl.tensor,
    k_row_stride: tl.tensor,
    v_head_stride: tl.tensor,
    v_row_stride: tl.tensor,
    new_k_stride: tl.tensor,
    new_v_stride: tl.tensor,
    place_stride: tl.tensor,
    positions_stride: tl.tensor,
    DIM: tl.constexpr,
    DIMS: tl.constexpr,
) -> None:
    """A program: one KV head."""
    head = tl.program_id(0).to(tl.int64)
    row = tl.load(place + head * place_stride)
    channel = tl.arange(0, DIMS)
    real = channel < DIM
    key = tl.load(new_k + head * new_k_stride + channel, mask=real)
    value = tl.load(new_v + head * new_v_stride + channel, mask=real)
    tl.store(k + head * k_head_stride + row * k_row_stride + channel, key, mask=real)
    tl.store(v + head * v_head_stride + row * v_row_stride + channel, value, mask=real)
    if positions is not None:
        tl.store(positions + head * positions_stride + row, tl.load(now))


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    numbers = ("k_head_stride", "k_row_stride", "v_head_stride", "v_row_stride", "new_k_stride", "new_v_stride",
               "place_stride", "positions_stride")  # fmt: skip
    rows = {"k": "*bf16", "v": "*bf16", "new_k": "*bf16", "new_v": "*bf16"}
    types = {**rows, "place": "*i64", "positions": "*i64", "now": "*i64", **dict.fromkeys(numbers, "i32")}
    shape = {"DIM": 128, "DIMS": 128, "num_warps": 1}
    return [(put_kernel, types, shape), (put_kernel, types, {**shape, "positions": None, "now": None})]
