"""Residual codebooks: an item's latent vector becomes one code per level (tarq.md 2.2, after Lee et al. 2022).

r_0 = e; i_l = argmin_k ||r_l - C_l[k]||^2; r_{l+1} = r_l - C_l[i_l] is the paper's. How codebooks are learned is not
published; here: residual k-means after a warm-up, the losses of RQ-VAE (its autoencoder's stands in tarq.py), and codes
that no item has are put where items are badly served. k-means is scipy's. The quantiser itself is written here, in a
few lines: in the libraries for it (vector-quantize-pytorch 1.32 was read) initialisation and revival happen inside the
forward pass, on the batch at hand and with the global generator, while ours look at the whole catalogue, at steps of
our choosing; and codes are assigned once per item and kept, which needs the assignment alone.

Legend: R latents, Q levels, S codes per level, D latent width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

_KMEANS_ROUNDS: Final = 20
_KMEANS_SEED: Final = 17


@dataclass(frozen=True)
class CodebookUse:
    """Per level: the share of codes that some item has, and exp of the entropy of the codes (at most S)."""

    utilization_Q: tuple[float, ...]
    perplexity_Q: tuple[float, ...]


class Codebooks(nn.Module):
    """Q codebooks of S codes. Until `initialise` was called, `ready` is false and codes mean nothing."""

    ready: Tensor

    def __init__(self, *, levels: int, codes: int, width: int) -> None:
        super().__init__()
        self.codes_QSD = nn.Parameter(torch.randn(levels, codes, width) * width**-0.5)
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def assign(self, latent_RD: Tensor) -> Tensor:
        """Return codes_RQ (int64), level by level the nearest code to what the levels before have left over."""
        residual_RD = latent_RD.to(self.codes_QSD.dtype)
        codes = []
        for code_SD in self.codes_QSD:
            code_R = squared_distances(residual_RD, code_SD).argmin(-1)
            residual_RD = residual_RD - code_SD[code_R]
            codes.append(code_R)
        return torch.stack(codes, dim=-1)

    def vectors(self, codes_RQ: Tensor) -> Tensor:
        """Return the chosen codes [..., Q, D] of codes_RQ [..., Q]."""
        return torch.stack([code_SD[codes_RQ[..., level]] for level, code_SD in enumerate(self.codes_QSD)], dim=-2)

    def losses(self, latent_RD: Tensor, codes_RQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return per latent [R] the codebook loss, sum_l ||sg(r_l) - C_l||^2, and the commitment, with sg on C instead.

        RQ-VAE's; the released code of the paper does not show how codebooks learn.
        """
        residual_RD, codebook, commitment = latent_RD, [], []
        for vector_RD in self.vectors(codes_RQ).unbind(-2):
            codebook.append((residual_RD.detach() - vector_RD).square().sum(-1))
            commitment.append((residual_RD - vector_RD.detach()).square().sum(-1))
            residual_RD = residual_RD - vector_RD.detach()
        return torch.stack(codebook).sum(0), torch.stack(commitment).sum(0)

    @torch.no_grad()
    def initialise(self, latent_RD: Tensor) -> None:
        """Set each level's codes to the k-means centres of what the levels before leave of R latents."""
        # Here, because who scores needs no k-means.
        from scipy.cluster.vq import kmeans2

        residual_RD = latent_RD.to(self.codes_QSD.dtype)
        for code_SD in self.codes_QSD:
            centres = min(len(code_SD), len(residual_RD))
            found, _ = kmeans2(
                residual_RD.cpu().double().numpy(), centres, iter=_KMEANS_ROUNDS, minit="++", seed=_KMEANS_SEED
            )
            code_SD[:centres] = torch.from_numpy(found).to(code_SD)
            residual_RD = residual_RD - code_SD[squared_distances(residual_RD, code_SD).argmin(-1)]
        self.ready.fill_(True)

    @torch.no_grad()
    def revive(self, latent_RD: Tensor) -> int:
        """Move codes that no latent has to the residuals that are farthest from theirs; return how many were moved."""
        residual_RD = latent_RD.to(self.codes_QSD.dtype)
        revived = 0
        for code_SD in self.codes_QSD:
            distance_R, code_R = squared_distances(residual_RD, code_SD).min(-1)
            dead = (torch.bincount(code_R, minlength=len(code_SD)) == 0).nonzero().squeeze(1)
            farthest = distance_R.argsort(descending=True, stable=True)[: len(dead)]
            code_SD[dead[: len(farthest)]] = residual_RD[farthest]
            revived += len(farthest)
            residual_RD = residual_RD - code_SD[squared_distances(residual_RD, code_SD).argmin(-1)]
        return revived

    def use(self, codes_RQ: Tensor) -> CodebookUse:
        """Return how the codes of R items use the codebooks."""
        size = self.codes_QSD.shape[1]
        utilization, perplexity = [], []
        for code_R in codes_RQ.unbind(-1):
            share_S = torch.bincount(code_R, minlength=size).double() / max(1, len(code_R))
            utilization.append(float((share_S > 0).double().mean()))
            perplexity.append(float(torch.special.entr(share_S).sum().exp()))
        return CodebookUse(tuple(utilization), tuple(perplexity))


def squared_distances(vector_RD: Tensor, code_SD: Tensor) -> Tensor:
    """Return ||v - c||^2 as [..., R, S]; both may have the same leading dimensions."""
    product_RS = vector_RD @ code_SD.transpose(-1, -2)
    return vector_RD.square().sum(-1, keepdim=True) - 2 * product_RS + code_SD.square().sum(-1).unsqueeze(-2)
