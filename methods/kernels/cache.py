"""PQCache's two tiers without the host: a directory of cached blocks on the device, K and V rows from either tier.

G KV heads, D head dimension, R rows of middle tokens in pinned host memory, which kernels read and write in place.
`methods.pqcache.directory` says the same in plain torch, and what the tensors mean. Launch grids depend on shapes alone
and the host never waits: a CUDA graph can hold them. The order that a caller keeps, by streams and events: gather_rows
and spill come after the refill before them; offer and refill after the gather_rows that asked for them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor


def offer(
    table: Tensor,
    owner: Tensor,
    uses: Tensor,
    touched: Tensor,
    clock: Tensor,
    blocks: Tensor,
    policy: Literal["lfu", "lru"],
) -> Tensor:
    """Touch distinct blocks int64 [b] (-1: none) in order and let absent ones in: the slots int32 [b] they came to.

    -1 where a block was there already, or was let in and had to leave again within this call. lfu: the block with the
    fewest uses leaves, among equals the one not touched for longest; lru: that one. Free slots go first, in order.
    Changes a directory's tensors, int32: table [num_blocks], the slot of a block or -1; for each slot its owner, uses
    and touched [capacity]; clock, 0-d. One program holds all slots: meant for 1024 and fewer.
    """
    capacity, number = owner.shape[0], blocks.shape[0]
    slots = torch.empty(number, dtype=torch.int32, device=blocks.device)
    padded = triton.next_power_of_2(max(1, capacity))
    offer_kernel[(1,)](
        table, owner, uses, touched, clock, blocks, slots, number, capacity, padded,
        triton.next_power_of_2(max(1, number)), policy == "lfu", num_warps=max(1, min(8, padded // 64)),
    )  # fmt: skip
    return slots


def gather_rows(
    rows: Tensor,
    table: Tensor,
    block: int,
    cache_k: Tensor,
    cache_v: Tensor,
    host_k: Tensor,
    host_v: Tensor,
    out_k: Tensor,
    out_v: Tensor,
    tile: int = 16,
) -> Tensor:
    """Copy rows int64 [G,k] of host_k, host_v [R,G,D] to out_k, out_v [G,k,D]; zeros where a row is -1.

    A row whose block of `block` rows is in `table` comes from cache_k, cache_v [slots*block,G,D], any other straight
    over the host link. Returns how many came from the cache, int64 0-d. rows, out_k and out_v may be columns of larger
    buffers. `tile` rows a program.
    """
    num_kv_heads, number = rows.shape
    dim = host_k.shape[2]
    assert out_k.stride(1) == out_v.stride(1) == dim and out_k.stride(2) == out_v.stride(2) == rows.stride(1) == 1
    hits = torch.zeros((), dtype=torch.long, device=rows.device)
    gather_kernel[(triton.cdiv(number, tile), num_kv_heads)](
        rows, table, cache_k, cache_v, host_k, host_v, out_k, out_v, hits, number, rows.stride(0),
        out_k.stride(0), out_v.stride(0), num_kv_heads, block, dim, triton.next_power_of_2(dim), tile,
    )  # fmt: skip
    return hits


def refill(
    blocks: Tensor,
    slots: Tensor,
    num_rows: Tensor,
    block: int,
    host_k: Tensor,
    host_v: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    parts: int = 4,
    chunk: int = 2048,
) -> None:
    """Copy the rows below num_rows (int64, 0-d, on the device) of each block int64 [b] to its slot int32 [b], if any.

    `parts` programs share a block, `chunk` elements of K and of V at a time each: enough reads under way to fill a host
    link, few enough programs to leave the multiprocessors to the layers that are computed meanwhile.
    """
    refill_kernel[(blocks.shape[0], parts)](
        blocks, slots, num_rows, host_k, host_v, cache_k, cache_v, host_k.stride(0), block, parts, chunk
    )


def spill(
    k_row: Tensor,
    v_row: Tensor,
    row: Tensor,
    table: Tensor,
    block: int,
    host_k: Tensor,
    host_v: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
) -> None:
    """Write k_row, v_row [G,D] to a row of the host, and to the cache too if the row's block is in `table`.

    row: int64, 0-d, on the device; -1: nothing is written.
    """
    num_kv_heads, dim = k_row.shape
    spill_kernel[(num_kv_heads,)](
        k_row, v_row, row, table, host_k, host_v, cache_k, cache_v, k_row.stride(0), v_row.stride(0), num_kv_heads,
        block, dim, triton.next_power_of_2(dim), num_warps=1,
    )  # fmt: skip


@triton.jit
def offer_kernel(
    table: tl.tensor,
    owner: tl.tensor,
    uses: tl.tensor,
    touched: tl.tensor,
    clock: tl.tensor,
    blocks: tl.tensor,
    slots: tl.tensor,
    number: tl.tensor,
    capacity: tl.tensor,
    PADDED: tl.constexpr,
    PADDED_NUMBER: tl.constexpr,
    LFU: tl.constexpr,
) -> None:
    """One program, which holds the state of all slots and meets one block after another."""
    slot = tl.arange(0, PADDED)
    real = slot < capacity
    before = tl.load(owner + slot, mask=real, other=-1)
    now_owner = before
    now_uses = tl.load(uses + slot, mask=real, other=0)
    now_touched = tl.load(touched + slot, mask=real, other=0)
    time = tl.load(clock)
    came = tl.full([PADDED], -1, tl.int32)  # the place in `blocks` of who came in, of those that stay
    for i in range(number):
        block = tl.load(blocks + i).to(tl.int32)
        offered = block >= 0
        time += offered.to(tl.int32)
        there = (now_owner == block) & offered
        # Free slots have neither uses nor touches: they go first, the lowest of them before the others.
        rank = now_touched.to(tl.int64)
        if LFU:
            rank += now_uses.to(tl.int64) << 32
        rank = tl.where(real, rank, 0x7FFFFFFFFFFFFFFF)
        absent = offered & (tl.max(there.to(tl.int32), 0) == 0)
        enters = (slot == tl.argmin(rank, 0)) & real & absent
        now_owner = tl.where(enters, block, now_owner)
        now_uses = tl.where(enters, 1, now_uses + there.to(tl.int32))
        now_touched = tl.where(enters | there, time, now_touched)
        came = tl.where(enters, i, came)
    tl.store(owner + slot, now_owner, mask=real)
    tl.store(uses + slot, now_uses, mask=real)
    tl.store(touched + slot, now_touched, mask=real)
    tl.store(clock, time)
    place = tl.arange(0, PADDED_NUMBER)
    tl.store(slots + place, tl.full([PADDED_NUMBER], -1, tl.int32), mask=place < number)
    tl.store(table + before, tl.full([PADDED], -1, tl.int32), mask=(came >= 0) & (before >= 0))
    tl.debug_barrier()  # the next stores may overwrite what other threads have just stored
    tl.store(table + now_owner, slot, mask=came >= 0)
    tl.store(slots + came, slot, mask=came >= 0)


@triton.jit
def gather_kernel(
    rows: tl.tensor,
    table: tl.tensor,
    cache_k: tl.tensor,
    cache_v: tl.tensor,
    host_k: tl.tensor,
    host_v: tl.tensor,
    out_k: tl.tensor,
    out_v: tl.tensor,
    hits: tl.tensor,
    number: tl.tensor,
    stride_rows: tl.tensor,
    stride_k: tl.tensor,
    stride_v: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """A program: TILE rows of one KV head. Each lane reads from one tier only: no bytes are fetched in vain."""
    head = tl.program_id(1)
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.load(rows + head * stride_rows + column, mask=column < number, other=-1)
    slot = tl.load(table + row // SIZE, mask=row >= 0, other=-1).to(tl.int64)
    hit = slot >= 0
    tl.atomic_add(hits, tl.sum(hit.to(tl.int64), 0), sem="relaxed")
    channel = tl.arange(0, PADDED_DIM)[None, :]
    real = channel < DIM
    near = ((slot * SIZE + row % SIZE) * NUM_KV_HEADS + head)[:, None] * DIM + channel
    far = (row * NUM_KV_HEADS + head)[:, None] * DIM + channel
    from_cache = hit[:, None] & real
    from_host = ((row >= 0) & (slot < 0))[:, None] & real
    # All loads before the first store: the host's come late.
    far_k = tl.load(host_k + far, mask=from_host, other=0.0, cache_modifier=".cg")
    far_v = tl.load(host_v + far, mask=from_host, other=0.0, cache_modifier=".cg")
    near_k = tl.load(cache_k + near, mask=from_cache, other=0.0)
    near_v = tl.load(cache_v + near, mask=from_cache, other=0.0)
    to = column[:, None] * DIM + channel
    inside = (column < number)[:, None] & real
    tl.store(out_k + head * stride_k + to, tl.where(hit[:, None], near_k, far_k), mask=inside)
    tl.store(out_v + head * stride_v + to, tl.where(hit[:, None], near_v, far_v), mask=inside)


@triton.jit
def refill_kernel(
    blocks: tl.tensor,
    slots: tl.tensor,
    num_rows: tl.tensor,
    host_k: tl.tensor,
    host_v: tl.tensor,
    cache_k: tl.tensor,
    cache_v: tl.tensor,
    WIDTH: tl.constexpr,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """A program: one part of a block, which is one stretch of SIZE rows of WIDTH elements in both tiers."""
    item = tl.program_id(0)
    slot = tl.load(slots + item).to(tl.int64)
    if slot >= 0:
        first = tl.load(blocks + item) * SIZE
        held = tl.minimum(tl.load(num_rows) - first, SIZE).to(tl.int32) * WIDTH
        source, target = first * WIDTH, slot * SIZE * WIDTH
        for start in range(tl.program_id(1) * CHUNK, held, PARTS * CHUNK):
            at = start + tl.arange(0, CHUNK)
            k = tl.load(host_k + source + at, mask=at < held, cache_modifier=".cg")
            v = tl.load(host_v + source + at, mask=at < held, cache_modifier=".cg")
            tl.store(cache_k + target + at, k, mask=at < held)
            tl.store(cache_v + target + at, v, mask=at < held)


@triton.jit
def spill_kernel(
    k_row: tl.tensor,
    v_row: tl.tensor,
    row: tl.tensor,
    table: tl.tensor,
    host_k: tl.tensor,
    host_v: tl.tensor,
    cache_k: tl.tensor,
    cache_v: tl.tensor,
    stride_k: tl.tensor,
    stride_v: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
) -> None:
    """A program: one KV head of the row."""
    head = tl.program_id(0)
    channel = tl.arange(0, PADDED_DIM)
    real = channel < DIM
    at = tl.load(row)
    slot = tl.load(table + at // SIZE, mask=at >= 0, other=-1).to(tl.int64)
    k = tl.load(k_row + head * stride_k + channel, mask=real)
    v = tl.load(v_row + head * stride_v + channel, mask=real)
    far = (at * NUM_KV_HEADS + head) * DIM + channel
    tl.store(host_k + far, k, mask=real & (at >= 0))
    tl.store(host_v + far, v, mask=real & (at >= 0))
    near = ((slot * SIZE + at % SIZE) * NUM_KV_HEADS + head) * DIM + channel
    tl.store(cache_k + near, k, mask=real & (slot >= 0))
    tl.store(cache_v + near, v, mask=real & (slot >= 0))


def signatures() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, argument types, constants with num_warps) for an ahead-of-time compile at Llama-3.1-8B's shapes."""
    tiers = {"host_k": "*bf16", "host_v": "*bf16", "cache_k": "*bf16", "cache_v": "*bf16"}
    slots = {"table": "*i32", "owner": "*i32", "uses": "*i32", "touched": "*i32", "clock": "*i32"}
    offered = {**slots, "blocks": "*i64", "slots": "*i32", "number": "i32", "capacity": "i32"}
    wanted = {"rows": "*i64", "table": "*i32", "hits": "*i64", "number": "i32", "stride_rows": "i32"}
    out = {"out_k": "*bf16", "out_v": "*bf16"}
    came = {"blocks": "*i64", "slots": "*i32", "num_rows": "*i64"}
    gone = {"k_row": "*bf16", "v_row": "*bf16", "row": "*i64", "table": "*i32"}
    strides = {"stride_k": "i32", "stride_v": "i32"}
    shape = {"NUM_KV_HEADS": 8, "SIZE": 128, "DIM": 128, "PADDED_DIM": 128}
    return [
        (offer_kernel, offered, {"PADDED": 32, "PADDED_NUMBER": 32, "LFU": True, "num_warps": 1}),
        (offer_kernel, offered, {"PADDED": 1024, "PADDED_NUMBER": 32, "LFU": False, "num_warps": 8}),
        (gather_kernel, {**wanted, **out, **strides, **tiers}, {**shape, "TILE": 16, "num_warps": 4}),
        (refill_kernel, {**came, **tiers}, {"WIDTH": 1024, "SIZE": 128, "PARTS": 4, "CHUNK": 2048, "num_warps": 4}),
        (spill_kernel, {**gone, **strides, **tiers}, {**shape, "num_warps": 1}),
    ]
