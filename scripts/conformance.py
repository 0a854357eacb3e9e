"""The conformance kit: what every selection method must keep, each as a named check on a tiny random model.

Checks treat a method by what it declares (`kind`, `spread`, `distance`, `own_prefill`, `block`), never by its name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engine.arm import Plan
from engine.generate import Answer, Question, Stop, answer
from engine.ledger import AuditError
from methods.base import Budget, Layer, Method
from methods.budget import parse_budget, resolve
from methods.full import Full
from methods.scores import logits as scaled_logits
from scripts.networks import model_of, network
from scripts.watch import Seen, Trace, Watched, WatchedIndex, follow

SHAPES: Mapping[str, Mapping[str, int]] = {
    "group1": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "group2": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "group4": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "mqa": {"num_attention_heads": 4, "num_key_value_heads": 1},
}
NUM_LAYERS = 2
VOCABULARY = 2048
SINK = 4
NUM_PROMPT = 150
NUM_NEW = 24  # more than the small budget's local window, so that new tokens leave it
NUM_QUESTION = 12
RATIO = "0.2"
NEAR = 1e-3  # logits and outputs are of order 1; another set of tokens moves them by 1e-2 and more


class Broken(AssertionError):
    """A method breaks the contract; the message says where and how, in one line."""


class Exempt(Exception):
    """A check does not apply to what a method declares; the message says why."""


def require(true: bool | Tensor, message: str) -> None:
    """Raise Broken unless it is true."""
    if not bool(true):
        raise Broken(message)


def distinct_ids(num_tokens: int, seed: int = 0) -> Tensor:
    """Token ids [n], none twice among 2,000: equal tokens have equal keys in the first layer, hence tied scores."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-num_tokens // (VOCABULARY - 3))
    ids = torch.cat([torch.randperm(VOCABULARY - 3, generator=generator) + 3 for _ in range(rounds)])
    return ids[:num_tokens]


class Tiny:
    """A tiny random Llama of one shape, and what full attention answers on it."""

    def __init__(self, shape: str) -> None:
        self.shape = shape
        sizes = {"num_hidden_layers": NUM_LAYERS, "vocab_size": VOCABULARY}
        config = {"model_type": "llama", **sizes, **SHAPES[shape]}
        self.network = network(config)
        self.model = model_of(self.network)
        self.swapped = model_of(swap_heads(network(config), self.group))
        self.half = model_of(network(config).to(torch.bfloat16))

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return SHAPES[self.shape]["num_attention_heads"] // SHAPES[self.shape]["num_key_value_heads"]

    @lru_cache(maxsize=64)  # noqa: B019  models live as long as the process
    def dense(self, num_prompt: int, num_new: int) -> Tensor:
        """Logits [1 + num_new, V] of full attention."""
        ids = distinct_ids(num_prompt + num_new)
        return follow(self.model, Full(), None, ids[:num_prompt], ids[num_prompt:].split(1)).logits


@lru_cache(maxsize=len(SHAPES))
def tiny(shape: str) -> Tiny:
    """The model of a shape; the same object each time."""
    return Tiny(shape)


def swap_heads(model: nn.Module, group: int) -> nn.Module:
    """The same function with the query heads of each group in reverse order."""
    for module in model.modules():
        if hasattr(module, "q_proj"):
            dim = int(module.head_dim)  # type: ignore[arg-type]
            rows, columns = module.q_proj.weight, module.o_proj.weight  # type: ignore[union-attr]
            rows.copy_(rows.unflatten(0, (-1, group, dim)).flip(1).flatten(0, 2))  # type: ignore[operator]
            columns.copy_(columns.unflatten(1, (-1, group, dim)).flip(2).flatten(1, 3))  # type: ignore[operator]
    return model


class Case:
    """A method on a tiny model; `trace` is computed once for all checks that look at it."""

    def __init__(self, method: Method, shape: str) -> None:
        self.method = method = method.untrained()
        self.tiny = tiny(shape)
        self.model = self.tiny.model
        reason = method.supports(self.model.facts)
        if reason is not None:
            raise Exempt(f"it does not run on this model: {reason}")

    @property
    def length(self) -> int:
        """Tokens of the usual prompt, enough for the method to act."""
        return max(NUM_PROMPT, 2 * self.method.min_tokens)

    @property
    def held(self) -> bool:
        """Whether the method is held to a budget."""
        return self.method.kind == "tokens"

    def small(self, num_tokens: int | None = None, ratio: str = RATIO) -> Budget | None:
        """A fifth of a prompt; None for a method without a budget. Raises Broken where that is answered densely."""
        if self.method.kind == "none":
            return None
        num = num_tokens or self.length
        budget = resolve(parse_budget(ratio), self.method, num, SINK, 0.5, 0, self.model.bytes_per_token)
        require(budget is not None, f"a prompt of {num} tokens is answered densely at budget={ratio}")
        return budget

    def whole(self, num_tokens: int) -> Budget:
        """A budget that holds `num_tokens` in every layer, with the method at work all the same."""
        total = 2 * num_tokens
        while True:
            # Where keys outside the local window are not at their true distance, all must be inside of it.
            share = 20 / total if self.method.distance == "true" else 1.0
            budget = Budget(SINK, *self.method.split(total, share))
            layers = self.method.budgets(budget, NUM_LAYERS, num_tokens)
            if all(max(b.local, b.middle) >= num_tokens for b in layers):
                return budget
            total *= 2
            require(total < 1000 * num_tokens, "no budget is so large that every layer may hold the whole prompt")

    def follow(self, budget: Budget | None, num_prompt: int, num_new: int = NUM_NEW, **changes: Any) -> Trace:
        """The method on a prompt, then tokens one by one. changes: model, method, seed, tokens (their seed)."""
        ids = distinct_ids(num_prompt + num_new, changes.get("tokens", 0))
        model, method = changes.get("model", self.model), changes.get("method", self.method)
        return follow(model, method, budget, ids[:num_prompt], ids[num_prompt:].split(1), changes.get("seed", 0))

    @cached_property
    def trace(self) -> Trace:
        """The usual prompt at the small budget."""
        return self.follow(self.small(), self.length)

    def answer(
        self, plans: Sequence[Plan], num_prompt: int, num_new: int, context_end: int | None = None
    ) -> list[Answer]:
        """Greedy answers through the real loop. Raises Broken where the audit does not let one pass."""
        question = Question(distinct_ids(num_prompt), 0, Stop(num_new, frozenset()), context_end)
        try:
            return answer(self.model, question, plans)
        except AuditError as error:
            raise Broken(str(error)) from error

    def plan(self, budget: Budget | None) -> Plan:
        """An arm of the method."""
        return Plan("it", self.method, budget)


def declares(case: Case) -> None:
    method, num = case.method, case.length
    require(is_dataclass(method) and type(method).__dataclass_params__.frozen, "it is no frozen dataclass")  # type: ignore[attr-defined]
    require(replace(method) == method, "a copy with the same parameters is not equal to it")
    for name, allowed in (
        ("kind", ("tokens", "none", "open")),
        ("spread", ("head", "q_head", "layer", "model")),
        ("distance", ("true", "clipped", "cache")),
    ):
        found = getattr(method, name)
        require(found in allowed, f"{name}={found!r}; allowed are {', '.join(allowed)}")
    require(method.block >= 1, f"block={method.block}; give 1 or more")
    require(method.min_tokens >= 0, f"min_tokens={method.min_tokens}; give 0 or more")
    for total, share in product((0, 1, 2, 7, 100), (0.0, 0.3, 0.5, 1.0)):
        parts = method.split(total, share)
        good = sum(parts) == total and min(parts) >= 0
        require(good, f"split({total}, {share}) gives {parts}: not two numbers of 0 or more with that sum")
        budget = Budget(SINK, *parts)
        layers = method.budgets(budget, NUM_LAYERS, num)
        right = len(layers) == NUM_LAYERS and sum(b.total for b in layers) <= NUM_LAYERS * budget.total
        require(right, f"budgets({budget}, {NUM_LAYERS}, {num}) gives {[b.total for b in layers]} tokens: more in sum")


def is_dense_when_it_may_read_all(case: Case) -> None:
    if not case.held:
        raise Exempt(f'it is of kind "{case.method.kind}": nothing says when it reads everything')
    if not case.method.lossless:
        raise Exempt("what it keeps has lost something, whatever its budget")
    num = case.length
    found = case.follow(case.whole(num + NUM_NEW), num).logits
    same_logits(found, case.tiny.dense(num, NUM_NEW), "full attention's, though its budget holds everything")


def keeps_its_budget(case: Case) -> None:
    if not case.held:
        raise Exempt(f'it is of kind "{case.method.kind}": it is held to no budget')
    budget = case.small()
    assert budget is not None
    within(case, case.trace, budget)
    case.answer([case.plan(budget)], case.length, NUM_NEW)
    for tight in (Budget(SINK, 10, 0), Budget(SINK, 10, 1), Budget(SINK, 0, 0), Budget(0, 3, 3)):
        within(case, case.follow(tight, case.length, 4), tight)


def within(case: Case, trace: Trace, budget: Budget) -> None:
    """Every step of a trace is within its budget over the declared spread. Raises Broken."""
    spent = [torch.stack([num_attended(case, layer, seen) for seen in layer.steps]) for layer in trace.watched.layers]
    if case.method.spread == "model":
        most = float(torch.cat(spent, 1).float().mean(1).max())
        require(most <= budget.total, f"a step attends {most:g} tokens, mean over the model; its budget is {budget}")
        return
    for number, counts in enumerate(spent):
        held = counts.float().mean(1, keepdim=True) if case.method.spread == "layer" else counts
        step, head = divmod(int(held.argmax()), held.shape[1])
        most, where = float(held[step, head]), f"layer {number}, step {step}, head {head}"
        require(most <= budget.total, f"{where}: {most:g} past tokens are attended; its budget is {budget}")


def num_attended(case: Case, layer: WatchedIndex, seen: Seen) -> Tensor:
    """Past tokens that each KV head, or with spread "q_head" each query head, attends in a step."""
    past = attended(layer, seen)[:, : seen.step.start]
    if case.method.spread != "q_head":
        past = past.unflatten(0, (layer.layer.num_kv_heads, -1)).any(1)
    return past.sum(1)


def really_selects(case: Case) -> None:
    if not case.held:
        raise Exempt(f'it is of kind "{case.method.kind}": it need not leave anything out')
    budget, trace = case.small(), case.trace
    assert budget is not None
    require(
        len(trace.watched.layers) == NUM_LAYERS, f"{len(trace.watched.layers)} of {NUM_LAYERS} layers have an index"
    )
    means = []
    for number, layer in enumerate(trace.watched.layers):
        steps = [seen for seen in layer.steps if seen.step.start >= case.length]
        require(len(steps) == NUM_NEW, f"layer {number} was asked at {len(steps)} of {NUM_NEW} steps")
        counts = torch.stack([num_attended(case, layer, seen) for seen in steps])
        require((counts < case.length // 2).all(), f"layer {number} reads {int(counts.max())} of {case.length} tokens")
        means.append(counts.float().mean())
    mean = float(torch.stack(means).mean())
    least = budget.sink + budget.local + budget.middle / 4  # block methods round down
    require(mean >= least, f"it reads {mean:.1f} tokens a step, not a quarter of what it may choose: {budget}")
    differs = (trace.logits - case.tiny.dense(case.length, NUM_NEW)).abs().max()
    require(differs > NEAR, "its answers are those of full attention")


def chooses_candidates_only(case: Case) -> None:
    ids = distinct_ids(case.length + NUM_QUESTION + NUM_NEW)
    question, later = ids[case.length : case.length + NUM_QUESTION], ids[case.length + NUM_QUESTION :]
    fed = follow(case.model, case.method, case.small(), ids[: case.length], [question, *later.split(1)])
    for number, layer in enumerate(fed.watched.layers):
        heads = layer.layer.num_kv_heads, layer.layer.num_heads
        for seen in layer.steps:
            where = f"layer {number}, at position {seen.step.start}"
            if seen.selection.positions is not None:
                check_choice(seen, heads, where)
            last = seen.step.start + seen.step.positions.shape[0] - 1
            require(seen.positions.max() <= last, f"{where}: position {int(seen.positions.max())} is read, its future")
            held = seen.positions.sort(1).values
            require(not ((held[:, 1:] == held[:, :-1]) & (held[:, 1:] >= 0)).any(), f"{where}: a token is read twice")
            late = seen.positions[:, None] > seen.step.positions[:, None]
            mass = seen.weights.masked_fill(~late.repeat_interleave(layer.layer.group, 0), 0.0).sum()
            require(mass == 0, f"{where}: {float(mass):.1e} of the attention is on later tokens")


def check_choice(seen: Seen, heads: tuple[int, int], where: str) -> None:
    """A selection is of int64 [G,k] or [H,k], with candidates only, each once. Raises Broken."""
    chosen, step = seen.selection.positions, seen.step
    assert chosen is not None
    require(chosen.dtype == torch.int64, f"{where}: positions are {chosen.dtype}, not int64")
    right = chosen.ndim == 2 and chosen.shape[0] in heads
    require(right, f"{where}: positions have shape {[*chosen.shape]}, not [{heads[0]},k] or [{heads[1]},k]")
    real = chosen[chosen >= 0]
    outside = real[(real < step.sink) | (real >= step.end)]
    say = f"{where}: position {int(outside[0]) if outside.numel() else 0} is chosen"
    require(outside.numel() == 0, f"{say}; the candidates are {step.sink} to {step.end - 1}")


def later_tokens_change_nothing(case: Case) -> None:
    if case.method.block > 1:
        raise Exempt(f"{case.method.block} new tokens share one selection")
    ids = distinct_ids(case.length + NUM_QUESTION)
    same = NUM_QUESTION // 2
    other = ids.clone()
    other[case.length + same :] = distinct_ids(NUM_QUESTION - same, seed=9)
    budget, prompt = case.small(), ids[: case.length]
    fed = [follow(case.model, case.method, budget, prompt, [x[case.length :]]) for x in (ids, other)]
    for number, (a, b) in enumerate(zip(fed[0].outputs, fed[1].outputs, strict=True)):
        gap = float((a[:, :same] - b[:, :same]).abs().max())
        require(gap < NEAR, f"layer {number}: answers move by {gap:.1e} when only later tokens are other ones")


def is_deterministic(case: Case) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1234)
        again = case.follow(case.small(), case.length, method=replace(case.method))
    same_trace(again, case.trace, "another run with the same seed, but another state of torch's global generator")


def forgets_the_last_sample(case: Case) -> None:
    before = case.trace
    case.follow(case.small(case.length - 13), case.length - 13, tokens=5)
    same_trace(case.follow(case.small(), case.length), before, "the same sample asked after another one")


def answers_short_prompts(case: Case) -> None:
    if case.method.kind != "none":
        dense = case.answer([case.plan(None), Plan("full", Full(), None)], case.length, 8)
        require(dense[0].dense_short and dense[0].tokens == dense[1].tokens, "a prompt within the budget is not dense")
    for num in (1, 2, SINK - 1, SINK, SINK + 1, SINK + 2, SINK + 3, SINK + 8, SINK + 17, SINK + 40):
        budget = None
        if case.method.kind != "none":
            budget = resolve(parse_budget("0.5"), case.method, num, SINK, 0.5, 0, case.model.bytes_per_token)
        try:
            [found] = case.answer([case.plan(budget)], num, 4)
        except Exception as error:
            raise Broken(f"a prompt of {num} tokens, {budget or 'dense'}: {said(error)}") from error
        require(len(found.tokens) == 4, f"a prompt of {num} tokens gets {len(found.tokens)} of 4 tokens")


def is_the_same_in_chunks(case: Case) -> None:
    # A prompt in blocks is the method's own affair: chunks then are whole blocks.
    chunk = case.method.block if case.method.own_prefill else 32
    if chunk > 2048:
        raise Exempt(f"blocks of {chunk} tokens are too long to test")
    num = max(case.length, 2 * chunk + 40)
    budget = case.small(num)
    one = case.trace if num == case.length else case.follow(budget, num, 4)
    chunked = replace(case.model, prefill_chunk=chunk)
    found = case.follow(budget, num, NUM_NEW if num == case.length else 4, model=chunked)
    same_trace(found, one, f"a prefill in chunks of {chunk} tokens")


def takes_a_question(case: Case) -> None:
    num, asked = case.length, NUM_QUESTION
    ids = distinct_ids(num + asked + NUM_NEW)
    prompt, question, new = ids[:num], ids[num : num + asked], ids[num + asked :].split(1)
    if case.held and case.method.lossless:
        found = follow(case.model, case.method, case.whole(ids.shape[0]), prompt, [question, *new]).logits
        dense = case.tiny.dense(num, asked + NUM_NEW)[[0, *range(asked, asked + NUM_NEW + 1)]]
        same_logits(found, dense, "full attention's, though its budget holds context, question and answer")
    case.answer([case.plan(case.small())], num + asked, NUM_NEW, context_end=num)
    if case.method.block == 1:
        budget = case.small()
        together = follow(case.model, case.method, budget, prompt, [question, *new]).logits
        alone = follow(case.model, case.method, budget, prompt, [*question.split(1), *new]).logits
        same_logits(together[1:], alone[asked:], "those of the same question token by token")


def reads_what_it_says(case: Case) -> None:
    """Outputs are exact attention on the full K and V, masked to the positions that a step says it reads."""
    if case.method.kind == "none":
        raise Exempt('it is of kind "none": what it keeps need not be exact')
    if not case.method.exact:
        raise Exempt("it merges keys and values, or keeps less of them, so that what it reads is not exact")
    for number, layer in enumerate(case.trace.watched.layers):
        keys, values = case.trace.watched.everything(number)
        answered, at = case.trace.outputs[number], 0
        for seen in layer.steps:
            num_new = seen.step.positions.shape[0]
            gap = float((expected(case.method, layer, seen, keys, values) - answered[:, at : at + num_new]).abs().max())
            where = f"layer {number}, at position {seen.step.start}"
            require(
                gap < NEAR, f"{where}: the answer is {gap:.1e} away from attention on the positions it says it reads"
            )
            at += num_new


def attended(layer: WatchedIndex, seen: Seen) -> Tensor:
    """The tokens up to the last new one that each query head attends, bool [H,n], before causality."""
    step, geometry = seen.step, layer.layer
    last = step.start + step.positions.shape[0]
    listed = seen.selection.positions
    rows = seen.positions if listed is None else listed
    # -1 pads fall on a column of their own, which is cut off again.
    mask = torch.zeros(rows.shape[0], last + 1, dtype=torch.bool).scatter_(1, rows + 1, True)[:, 1:]
    if listed is not None:
        mask[:, : min(step.sink, step.end)] = True
        mask[:, step.end :] = True
    return mask.repeat_interleave(geometry.num_heads // rows.shape[0], 0)


def expected(method: Method, layer: WatchedIndex, seen: Seen, keys: Tensor, values: Tensor) -> Tensor:
    """Attention [H,m,D] from all keys and values [G,n,D] under a mask, and what stands in for the rest."""
    step, geometry = seen.step, layer.layer
    mask = attended(layer, seen)
    last = mask.shape[1]
    keys, values = (t[:, :last].float().repeat_interleave(geometry.group, 0) for t in (keys, values))
    position = torch.arange(last)
    single = replace(geometry, num_kv_heads=geometry.num_heads)
    logit = scaled_logits(step.queries, keys, single)
    if method.distance != "true":
        plain_q, plain_k = geometry.rotate(step.queries, step.positions, True), geometry.rotate(keys, position, True)
        if method.distance == "clipped":
            local = layer.budget.local
            turned = geometry.rotate(plain_q, torch.full_like(step.positions, local), False)
            far = step.positions[:, None] - position > local
            logit = torch.where(far, scaled_logits(turned, plain_k, single), logit)
        else:
            rank = mask.long().cumsum(1) - 1
            here = geometry.rotate(plain_k, rank.clamp(min=0), False)
            logit = scaled_logits(geometry.rotate(plain_q, rank[:, step.positions], False), here, single)
    logit = logit.masked_fill(~mask[:, None] | (position > step.positions[:, None]), -torch.inf)
    out = logit.softmax(-1) @ values
    rest = seen.selection.rest
    if rest is None:
        return out
    share = rest.mass if rest.lse is None else torch.sigmoid(logit.logsumexp(-1) - rest.lse)
    assert share is not None
    stand_in = torch.zeros_like(out) if rest.value is None else rest.value.float()
    return share[..., None] * out + (1 - share[..., None]) * stand_in


def does_not_care_for_the_order_of_heads(case: Case) -> None:
    if case.tiny.group == 1:
        raise Exempt("groups of one query head have no order")
    swapped = case.follow(case.small(), case.length, model=case.tiny.swapped)
    try:
        same_trace(swapped, case.trace, "the query heads of each group in another order")
    except Broken:
        # What a head draws at random may depend on its place; then another order is no more than another seed.
        drawn = overlap(case.follow(case.small(), case.length, seed=1), case.trace)
        if drawn > 0.99 or overlap(swapped, case.trace) < drawn - 0.1:
            raise


def overlap(found: Trace, right: Trace) -> float:
    """The share of the tokens read in `right` that `found` reads, too, over all steps."""
    num = [0, 0]
    for a, b in zip(found.watched.layers, right.watched.layers, strict=True):
        for one, other in zip(a.steps, b.steps, strict=True):
            for x, y in zip(read_sets(one.positions), read_sets(other.positions), strict=True):
                num[0] += len(x & y)
                num[1] += len(y)
    return num[0] / max(1, num[1])


def counts_its_bytes(case: Case) -> None:
    watched = Watched(case.method)
    [found] = case.answer([Plan("it", watched.plan_method, case.small())], case.length, NUM_NEW)
    total = 0
    for number, layer in enumerate(watched.layers):
        held = {place(t): (name, t) for name, t in tensors_within((layer.store, layer.inner), f"layer {number}")}
        told = {place(t) for _, t in (*layer.store.tensors(), *layer.inner.tensors()) if t.untyped_storage().nbytes()}
        for key, (name, tensor) in held.items():
            require(key in told, f"{name} holds {tensor.untyped_storage().nbytes()} bytes that no tensors() reports")
        require(told <= held.keys(), f"layer {number}: tensors() reports memory that neither store nor index holds")
        total += sum(tensor.untyped_storage().nbytes() for _, tensor in held.values())
    said_total = sum(found.ledger.resident.values())
    require(said_total == total, f"the ledger says {said_total} bytes, store and index hold {total}")
    for name, _ in tensors_within((case.method,), "the method", skip=()):
        raise Broken(f"{name} is a tensor: parameters hold none, and what belongs to a sample belongs to its index")


def place(tensor: Tensor) -> int:
    """What tells the memory behind a tensor from others."""
    return tensor.untyped_storage().data_ptr()


def tensors_within(
    roots: Iterable[object], name: str, skip: tuple[type, ...] = (Layer, Method, Budget)
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all non-empty memory that objects hold, through attributes, containers and closures."""
    todo, met = deque((name, root) for root in roots), set[int]()
    while todo:
        name, found = todo.popleft()
        if id(found) in met or isinstance(found, (*skip, type, str, bytes, int, float, nn.Module, ModuleType)):
            continue
        met.add(id(found))
        if isinstance(found, Tensor):
            if found.untyped_storage().nbytes():
                yield name, found
        else:
            todo.extend((f"{name}{step}", part) for step, part in parts_of(found))


def parts_of(found: object) -> Iterable[tuple[str, object]]:
    """(step of the path, object) of what an object holds."""
    if isinstance(found, Mapping):
        return [(f"[{key!r}]", part) for key, part in found.items()]
    if isinstance(found, (list, tuple, set, frozenset, deque)):
        return [(f"[{number}]", part) for number, part in enumerate(found)]
    if isinstance(found, partial):
        return [("()", part) for part in (found.func, *found.args, *found.keywords.values())]
    if isinstance(found, FunctionType):
        return [("()", cell.cell_contents) for cell in found.__closure__ or ()]
    slots = [name for kind in type(found).__mro__ for name in getattr(kind, "__slots__", ())]
    named = {name: getattr(found, name) for name in slots if hasattr(found, name)}
    return [(f".{name}", part) for name, part in {**named, **getattr(found, "__dict__", {})}.items()]


def shares_its_prefix(case: Case) -> None:
    small = case.small()
    plans = [case.plan(small), Plan("full", Full(), None)]
    if small is not None:
        plans.append(case.plan(case.small(ratio="0.35")))
    together = case.answer(plans, case.length, NUM_NEW)
    for plan, found in zip(plans, together, strict=True):
        [alone] = case.answer([plan], case.length, NUM_NEW)
        name = "full attention" if plan.name == "full" else f"the method at {plan.budget}"
        require(found.tokens == alone.tokens, f"{name} answers otherwise when it runs beside other arms")
    for number, (k, v, k_before, v_before) in enumerate(case.trace.watched.prompts):
        intact = torch.equal(k, k_before) and torch.equal(v, v_before)
        require(intact, f"layer {number}: it wrote to the prompt's K and V, which other arms share")


def runs_in_half_precision(case: Case) -> None:
    found = case.follow(case.small(), case.length, 6, model=case.tiny.half)
    require(found.logits.isfinite().all(), "logits are not finite in bfloat16")
    for number, layer in enumerate(found.watched.layers):
        for seen in layer.steps:
            where = f"layer {number}, at position {seen.step.start}"
            require(seen.weights.isfinite().all(), f"{where}: weights are not finite in bfloat16")


def same_logits(found: Tensor, right: Tensor, whose: str) -> None:
    """Logits [T,V] are equal up to rounding. Raises Broken."""
    gaps = (found - right).abs().amax(1)
    step = int((gaps >= NEAR).long().argmax())
    require((gaps < NEAR).all(), f"at step {step} logits are {float(gaps[step]):.1e} away from {whose}")


def same_trace(found: Trace, right: Trace, what: str) -> None:
    """Two traces chose the same tokens and gave the same logits up to rounding. Raises Broken."""
    for number, (a, b) in enumerate(zip(found.watched.layers, right.watched.layers, strict=True)):
        # Where the prompt itself goes through the method in other chunks, steps differ before its end.
        steps = [{s.step.start: s for s in layer.steps if s.step.positions.shape[0] == 1} for layer in (a, b)]
        for start in sorted(steps[0].keys() & steps[1].keys()):
            sets = [read_sets(found_steps[start].positions) for found_steps in steps]
            require(sets[0] == sets[1], f"{what}: layer {number} reads other tokens at position {start}")
    same_logits(found.logits, right.logits, f"what they were: {what}")


def read_sets(positions: Tensor) -> list[set[int]]:
    """The positions of each row."""
    return [set(row) - {-1} for row in positions.tolist()]


@dataclass(frozen=True)
class Check:
    """One promise. what: it in words. run: raises Broken where it is not kept, Exempt where it does not apply."""

    name: str
    what: str
    run: Callable[[Case], None]


CHECKS = (
    Check("declares", "a frozen dataclass whose declarations, splits and layer budgets make sense", declares),
    Check("whole", "with a budget for everything its logits are full attention's", is_dense_when_it_may_read_all),
    Check("budget", "no step attends more than the budget, over the declared spread", keeps_its_budget),
    Check("selects", "asked in each layer and step, it leaves tokens out and uses its budget", really_selects),
    Check("candidates", "it chooses candidates only, each once, nothing from the future", chooses_candidates_only),
    Check("causal", "later tokens of a question do not change the answers before them", later_tokens_change_nothing),
    Check("seed", "the same seed gives the same choice and logits", is_deterministic),
    Check("reset", "samples A, B, A: A is the same twice", forgets_the_last_sample),
    Check("short", "prompts of 1 token and more are answered, within the budget densely", answers_short_prompts),
    Check("chunks", "a prefill in chunks gives what one in one piece gives", is_the_same_in_chunks),
    Check("question", "a question of several tokens may follow the prompt", takes_a_question),
    Check("positions", "outputs equal a masked oracle on the positions that are read", reads_what_it_says),
    Check("heads", "the order of query heads within a group does not matter", does_not_care_for_the_order_of_heads),
    Check("bytes", "the ledger's bytes are those of the tensors that store and index hold", counts_its_bytes),
    Check(
        "shared", "beside other arms on one prefill it answers as alone, and writes to none of it", shares_its_prefix
    ),
    Check("half", "it runs in bfloat16", runs_in_half_precision),
)


def said(error: Exception) -> str:
    """An error in one line; one that is no verdict with its kind and the line of code that raised it."""
    text = " ".join(str(error).split())
    if isinstance(error, Broken):
        return text
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {text}{place}"
