"""Product quantisation of keys: codebooks by k-means, codes, and inner products by table look-up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_ELEMENTS = 1 << 24  # float32 distances held at once: 64 MiB


@dataclass(frozen=True)
class Codebook:
    """Centroids float32 [G,s,C,D/s] of s sub-spaces, and the codes uint8 [G,s,n] of the tokens it was trained on."""

    centroids: Tensor
    codes: Tensor

    def encode(self, keys: Tensor) -> Tensor:
        """Codes uint8 [G,s,m] of keys [G,m,D]: the nearest centroid (L2) of each sub-space."""
        sub = split_heads(keys, self.centroids.shape[1])
        labels = nearest(sub.flatten(0, 1), self.centroids.flatten(0, 1))
        return labels.view(*sub.shape[:3]).to(torch.uint8)

    def inner_products(self, queries: Tensor, codes: Tensor) -> Tensor:
        """Approximate q·k, float32 [H,n], of queries [H,D] with the keys behind codes [G,s,n]."""
        num_kv_heads, num_sub, _, dim = self.centroids.shape
        parts = queries.float().view(num_kv_heads, -1, num_sub, dim)
        table = torch.einsum("ghsd,gscd->ghsc", parts, self.centroids)
        out = torch.zeros(*parts.shape[:2], codes.shape[2], device=queries.device)
        for s in range(num_sub):
            code = codes[:, s, None].long().expand(-1, parts.shape[1], -1)
            out += table[:, :, s].gather(2, code)
        return out.flatten(0, 1)


def fit(keys: Tensor, num_sub: int, num_centroids: int, iterations: int, seed: int) -> Codebook:
    """A codebook of keys [G,n,D] by Lloyd's algorithm with at most `iterations` rounds (L2 on post-RoPE keys).

    The initial centroids are rows drawn once for all sub-spaces, on the host, so that every device starts alike.
    """
    draw = torch.randperm(keys.shape[1], generator=torch.Generator().manual_seed(seed))[:num_centroids]
    if keys.is_cuda:
        from methods.kernels.kmeans import kmeans as kernel

        points = keys.unflatten(-1, (num_sub, -1)).transpose(1, 2)  # a view in the keys' own type
        with torch.cuda.device_of(keys):
            return Codebook(*kernel(points, points[:, :, draw.to(keys.device)].float(), iterations))
    sub = split_heads(keys, num_sub)
    centroids, labels = kmeans(sub.flatten(0, 1), draw.to(keys.device), iterations)
    shape = sub.shape[:2]
    return Codebook(centroids.unflatten(0, shape), labels.unflatten(0, shape).to(torch.uint8))


def kmeans(points: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on P problems at once: points [P,n,d], start [C] -> (centroids [P,C,d], labels [P,n]).

    An empty cluster keeps its centroid. Ends early when no label changes. A batched torch form is used because a
    library call per problem (16 and more small ones a layer) would neither batch nor run where the keys are.
    """
    centroids = points[:, start]
    labels = nearest(points, centroids)
    for _ in range(iterations):
        centroids = means(points, labels, centroids)
        updated = nearest(points, centroids)
        if torch.equal(updated, labels):
            break
        labels = updated
    return centroids, labels


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Labels [P,n] of the centroids [P,C,d] closest (L2) to points [P,n,d]; equal distances: the lower label."""
    square = (centroids * centroids).sum(-1)[:, None]
    step = max(1, MAX_ELEMENTS // (centroids.shape[0] * centroids.shape[1]))
    blocks = [torch.baddbmm(square, p, centroids.mT, alpha=-2).argmin(-1) for p in points.split(step, 1)]
    return torch.cat(blocks, 1)


def means(points: Tensor, labels: Tensor, old: Tensor) -> Tensor:
    """Mean of the points of each label [P,C,d]; `old` where a label has none."""
    number, num_centroids = old.shape[:2]
    row = (labels + num_centroids * torch.arange(number, device=labels.device)[:, None]).flatten()
    # One point after the other, in a fixed order on a CPU. A GPU, which would not keep one, has a kernel (`fit`).
    total = torch.zeros_like(old).flatten(0, 1).index_add_(0, row, points.flatten(0, 1)).view_as(old)
    count = torch.bincount(row, minlength=number * num_centroids).view(number, -1, 1)
    return torch.where(count > 0, total / count.clamp(min=1), old)


def split_heads(keys: Tensor, num_sub: int) -> Tensor:
    """Keys [G,n,D] as float32 sub-vectors [G,s,n,D/s]; sub-vector j is the channels j*D/s .. (j+1)*D/s."""
    out: Tensor = keys.float().unflatten(-1, (num_sub, -1))
    return out.transpose(1, 2)
