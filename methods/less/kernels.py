"""The learned feature maps of LESS, their file, and whether they fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import gelu

from methods.base import ModelFacts

ROOT = Path(__file__).parents[2]
NAMES = ("q1", "q2", "k1", "k2", "mix", "scale", "mixed_scale")
DROPOUT = 0.3  # on the hidden layer, in training
START = 1e-4  # of both scales: training starts at the eviction method alone


class Kernels(nn.Module):
    """Feature maps of one layer, so that phi(q) . psi(k) stands for e^(logit of q on k); section 3 of the paper.

    phi(q) = |gelu(gelu(q q1) q2)| for each query head: q1 [H,D,h], q2 [H,h,R]. For each KV head
    u = |scale| gelu(gelu(k k1) k2), psi(k) = |u + (u mix) mixed_scale|: k1 [G,D,h], k2 [G,h,R], mix [G,R,R],
    scale and mixed_scale [G,R]. All in float32.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(tensors[name].float()) for name in NAMES})
        self.drop = nn.Dropout(DROPOUT)

    @property
    def rank(self) -> int:
        """Features R."""
        return int(self.weights["q2"].shape[2])

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(p.numel() * p.element_size() for p in self.parameters())

    def phi(self, queries: Tensor) -> Tensor:
        """Features [H,m,R] of queries [H,m,D], none negative."""
        w = self.weights
        out: Tensor = gelu(self.drop(gelu(queries.float() @ w["q1"])) @ w["q2"]).abs()
        return out

    def psi(self, keys: Tensor) -> Tensor:
        """Features [G,r,R] of keys [G,r,D], none negative."""
        w = self.weights
        u = w["scale"].abs()[:, None] * gelu(self.drop(gelu(keys.float() @ w["k1"])) @ w["k2"])
        out: Tensor = (u + (u @ w["mix"]) * w["mixed_scale"][:, None]).abs()
        return out


def drawn(
    heads: tuple[int, int], head_dim: int, hidden: int, rank: int, scale: float, generator: torch.Generator
) -> Kernels:
    """Untrained kernels for (query heads, KV heads), on the host: matrices uniform within sqrt(6 / (inputs + outputs)).

    The query heads of a group begin with the same weights.
    """
    num_heads, num_kv_heads = heads

    def matrix(rows: int, columns: int) -> Tensor:
        bound = (6 / (rows + columns)) ** 0.5
        out: Tensor = (torch.rand(num_kv_heads, rows, columns, generator=generator) * 2 - 1) * bound
        return out

    group = num_heads // num_kv_heads
    queries = {"q1": matrix(head_dim, hidden), "q2": matrix(hidden, rank)}
    keys = {"k1": matrix(head_dim, hidden), "k2": matrix(hidden, rank), "mix": matrix(rank, rank)}
    scales = {name: torch.full((num_kv_heads, rank), scale) for name in ("scale", "mixed_scale")}
    return Kernels({**{name: w.repeat_interleave(group, 0) for name, w in queries.items()}, **keys, **scales})


def save(path: Path, layers: Mapping[int, Kernels], card: Mapping[str, str]) -> None:
    """Write the kernels of all layers, by layer number, and what they were trained for and how."""
    tensors = {
        f"{number}.{name}": weight.detach().cpu().contiguous()
        for number, kernels in layers.items()
        for name, weight in kernels.weights.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, dict(card))


def located(path: str) -> Path:
    """A file of kernels; what is not absolute lies in the project's folder."""
    return ROOT / Path(path).expanduser()


@lru_cache(maxsize=256)
def load(path: str, layer: int, device: torch.device) -> Kernels:
    """The kernels of one layer. Raises ValueError, in one line, where they cannot be read."""
    try:
        with safe_open(located(path), "pt", str(device)) as file:
            tensors = {name: file.get_tensor(f"{layer}.{name}") for name in NAMES}
    except (OSError, SafetensorError) as error:
        raise ValueError(unreadable(path, error)) from error
    return Kernels(tensors).requires_grad_(False).eval()


def unreadable(path: str, error: Exception) -> str:
    """In one line, why a file of kernels cannot be had."""
    what = " ".join(str(error).split())
    reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"no kernels ({what})"
    return f"method.weights={path}: {reason}; train kernels: python -m scripts.train_less --help"


def misfit(path: str, model: ModelFacts, base: str) -> str | None:
    """Why the kernels in a file are not for this model and this eviction method, or None.

    Of a model whose weights are not here (no fingerprint) only the shapes are compared.
    """
    remedy = "train others: python -m scripts.train_less --help"
    try:
        with safe_open(located(path), "pt") as file:
            card, held = file.metadata() or {}, set(file.keys())
            shapes = {name: file.get_slice(name).get_shape() for name in held}
    except (OSError, SafetensorError) as error:
        return unreadable(path, error)
    missing = {"fingerprint", "base", "model"} - card.keys()
    if missing:
        return f"method.weights={path} does not say its {', '.join(sorted(missing))}; {remedy}"
    if model.fingerprint and model.fingerprint != card["fingerprint"]:
        trained = f"trained on {card['model']} with fingerprint {card['fingerprint']}"
        return f"method.weights={path} was {trained}; this model's is {model.fingerprint}; {remedy}"
    if base != card["base"]:
        return f"method.weights={path} was trained over {card['base']}, not over method.base={base}; {remedy}"
    wanted = {"q1": model.num_heads, "k1": model.num_kv_heads}
    for number, window in enumerate(model.windows):
        for name, heads in wanted.items() if window is None else ():
            found = shapes.get(f"{number}.{name}")
            if found is None or found[:2] != [heads, model.head_dim]:
                what = "nothing" if found is None else f"kernels for {found[0]} heads of {found[1]}"
                has = f"{heads} of {model.head_dim}"
                return f"method.weights={path} holds {what} for layer {number}, which has {has}; {remedy}"
    return None
