"""TARQ: what target attention says of an item, from the item's codes (tarq.md 2, 3).

Online: two towers with self and profile attention, and a student, whose queries are not the candidates but the Q x S
codes of the item codebooks: they look at a history once per request, and a candidate gathers and sums what its own
codes found. In training alone: a teacher that attends with the item itself, and has a logit and a loss of its own.

The paper's: eq 1-5, the codes, who attends to what, the distillation losses and their stop-gradients, no teacher
online. Ours, because it is not published: the heads' inputs and forms (MLPs over [u, i, u*i, h, h*e], added to the
towers' logit; e, the echo, is what the item would be found as), one user vector per task, a history's profile (how
much of each age) beside what the profile attention found, a learned scale of the cosine, a latent that starts as the
item's token and must tell it again (an autoencoder, as RQ-VAE has it: without it, latents that are all alike serve the
losses best, and codes say nothing), that student and codes do not move the shared embeddings, when codebooks are
initialised and revived, all weights but those of 3.4.

Legend: R items, B requests, T history positions, N candidates, Q levels, S codes per level, D width, Y tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gesr_core.model.attention import Attention, SeenHistory
from gesr_core.model.codebook import Codebooks
from gesr_core.model.inputs import History, ItemFeatures, ItemState, UserFeatures
from gesr_core.model.sizes import ModelSizes
from gesr_core.model.towers import Categories, EventTokens, ExactLinear, HistoryProfile, ItemTower, exact_product, mlp

# Names of what an item keeps beside its vector and its token; latents and losses are kept while training only.
CODES, ECHO, LATENT, ITEM_LOSS = "codes_RQ", "echo_RD", "latent_RD", "item_loss_R"
# The released code's: it keeps the logarithms of P / Pbar finite.
_TINY: Final = 1e-8
_FIRST_SCALE: Final = 5.0
# Codes without an item are looked for each time that this share of a pass's steps is over.
_REVIVAL_SHARE: Final = 0.05


@dataclass(frozen=True)
class TarqUserState:
    """Once per request: the user vector, its unit task vectors, and what the codes found in the history.

    `found_BQSD` is None while codebooks are not initialised; `teacher` is None where nobody asks the teacher.
    """

    user_BD: Tensor
    unit_BYD: Tensor
    found_BQSD: Tensor | None
    teacher: SeenHistory | None


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses beside the served logit's; 1 each in the paper's code as far as it shows them."""

    teacher: float
    reconstruction: float
    alignment: float
    codebook: float
    commitment: float
    autoencoder: float


class Towers(nn.Module):
    """The backbone, eq 1-5: a profile that looks at the history, an item, and the cosine of both."""

    def __init__(
        self, sizes: ModelSizes, *, age_buckets: int, width: int, category_width: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        tasks = len(sizes.task_logits)
        self.activity = HistoryProfile(age_buckets=age_buckets)
        self.categories = Categories(
            sizes=sizes.user_categories, width=category_width, columns=sizes.user_category_columns
        )
        self.profile = nn.Linear(self.categories.width_out + sizes.user_numerics, width)
        self.history = Attention(width=width, heads=heads)
        self.attended = Attention(width=width, heads=heads)
        self.user = mlp(2 * width + self.activity.width_out, 2 * width, width, dropout=dropout)
        self.tasks = ExactLinear(width, width * tasks)
        self.log_scale_Y = nn.Parameter(torch.full((tasks,), math.log(_FIRST_SCALE)))
        # The base rate from the start, as in the two-tower.
        self.bias_Y = nn.Parameter(torch.tensor(list(sizes.task_logits), dtype=torch.float32))

    def encode(self, user: UserFeatures, history: History, event_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return user_BD and, per task, unit vectors unit_BYD."""
        valid_BT = history.valid_BT
        profile_BD = self.profile(torch.cat([self.categories(user.categorical_BC), user.numeric_BF], dim=-1))
        related_BTD = self.history(event_BTD, valid_BT)
        attended_B1D = self.attended.ask(self.attended.see(related_BTD, valid_BT), profile_BD.unsqueeze(1))
        user_BD = self.user(torch.cat([profile_BD, attended_B1D.squeeze(1), self.activity(history)], dim=-1))
        tasks_BYD = self.tasks(user_BD).unflatten(-1, (len(self.bias_Y), user_BD.shape[-1]))
        return user_BD, F.normalize(tasks_BYD, dim=-1)

    def forward(self, unit_BYD: Tensor, item_BND: Tensor) -> Tensor:
        """Return logits_BNY: the scaled cosine of user and item, and the task's bias; item vectors have length 1."""
        return exact_product(item_BND, unit_BYD.transpose(1, 2)) * self.log_scale_Y.exp() + self.bias_Y


class FoundLogit(nn.Module):
    """What is added to the towers' logit because of what was found in the history; nothing at first.

    The echo is the value that an event of this very item has: what was found times the echo tells, from the first step
    on, whether the item itself was found.
    """

    def __init__(self, *, width: int, head_width: int, tasks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.echo_norm = nn.LayerNorm(width)
        self.head = mlp(5 * width, head_width, tasks, dropout=0.0)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, user_BD: Tensor, item_BND: Tensor, found_BND: Tensor, echo_BND: Tensor) -> Tensor:
        """Return logits_BNY."""
        user_BND = user_BD.unsqueeze(1).expand_as(item_BND)
        # Unit vectors have small elements: the width brings them to the size of the others.
        item_BND = item_BND * item_BND.shape[-1] ** 0.5
        found_BND = self.norm(found_BND)
        inputs = [user_BND, item_BND, user_BND * item_BND, found_BND, found_BND * self.echo_norm(echo_BND)]
        return self.head(torch.cat(inputs, dim=-1))


class Tarq(nn.Module):
    """A pair costs a dot product, Q gathers, and a small head; the teacher is not asked when serving.

    `serves` chooses whose logit is served (and learned as the main one): the student's, which is TARQ, or for
    comparison the teacher's or the bare towers'.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        *,
        width: int,
        id_width: int,
        category_width: int,
        user_category_width: int,
        dropout: float,
        time_buckets: int,
        heads: int,
        levels: int,
        codes: int,
        head_width: int,
        serves: Literal["student", "teacher", "backbone"],
        weights: LossWeights,
        alignment_temperature: float,
        warm_up_share: float,
        revive: bool,
    ) -> None:
        super().__init__()
        self.serves, self.weights, self.temperature = serves, weights, alignment_temperature
        self.warm_up_share, self.revives = warm_up_share, revive
        self.item_tower = ItemTower(
            sizes, width=width, id_width=id_width, category_width=category_width, dropout=dropout
        )
        self.events = EventTokens(sizes, age_buckets=time_buckets, width=width)
        self.towers = Towers(
            sizes,
            age_buckets=time_buckets,
            width=width,
            category_width=user_category_width,
            heads=heads,
            dropout=dropout,
        )
        # What is quantised is a non-linear projection of the item's token, and at first the token itself: so codes lie
        # where the teacher's queries lie.
        self.latent = mlp(width, 2 * width, width, dropout=0.0)
        self.told_again = mlp(width, 2 * width, width, dropout=0.0)
        for parameter in (*self.latent[-1].parameters(), *self.told_again[-1].parameters()):
            nn.init.zeros_(parameter)
        self.codebooks = Codebooks(levels=levels, codes=codes, width=width)
        tasks = len(sizes.task_logits)
        self.student_history = Attention(width=width, heads=heads)
        self.student = Attention(width=width, heads=heads)
        self.student_logit = FoundLogit(width=width, head_width=head_width, tasks=tasks)
        self.teacher_history = Attention(width=width, heads=heads)
        self.teacher = Attention(width=width, heads=heads)
        self.teacher_logit = FoundLogit(width=width, head_width=head_width, tasks=tasks)
        # How far a pass was when codes were revived last; a buffer, so that a resumed training knows it.
        self.revived_share: Tensor
        self.register_buffer("revived_share", torch.zeros(()))

    # The three functions.

    def encode_items(self, items: ItemFeatures) -> ItemState:
        """Return the state of R items: a vector of length 1, the token, one code per level, and the echo."""
        vector_RD, token_RD = self.item_tower(items)
        latent_RD = self._latent_of(token_RD)
        kept = {CODES: self.codebooks.assign(latent_RD), ECHO: self.student.value(token_RD)}
        kept |= self.events.of_items(items)
        if self.training:
            kept[LATENT] = latent_RD
            if self.serves == "student" and self.codebooks.ready:
                # Here, where each item stands once.
                kept[ITEM_LOSS] = self.item_loss(token_RD, latent_RD, kept[CODES])
        return ItemState(F.normalize(vector_RD, dim=-1), token_RD, items.match_RM, kept)

    def encode_user(self, history: History, history_items: ItemState, user: UserFeatures) -> TarqUserState:
        """Return the state of B requests; `history_items` is gathered by `history.row_BT`."""
        event_BTD, valid_BT = self.events(history, history_items.token_RD, history_items.extra), history.valid_BT
        user_BD, unit_BYD = self.towers.encode(user, history, event_BTD)
        found_BQSD = None
        if self.serves == "student" and self.codebooks.ready:
            # Embeddings are the towers' and the teacher's to move: distillation would drown what labels say to them.
            related_BTD = self.student_history(event_BTD.detach(), valid_BT)
            found_BQSD = self.found(self.student.see(related_BTD, valid_BT))
        teacher = None
        if self.serves == "teacher" or (self.serves == "student" and self.training):
            teacher = self.teacher.see(self.teacher_history(event_BTD, valid_BT), valid_BT)
        return TarqUserState(user_BD, unit_BYD, found_BQSD, teacher)

    def score(self, state: TarqUserState, items: ItemState) -> Tensor:
        """Return logits_BNY of candidates whose states are gathered as [B, N, ...]."""
        if self.serves == "teacher":
            return self.teachers_logits(state, items, self.taught(state, items))
        logits_BNY = self.towers(state.unit_BYD, items.vector_RD)
        if state.found_BQSD is None:
            return logits_BNY
        found_BND = gathered(state.found_BQSD, items.extra[CODES])
        return logits_BNY + self.student_logit(state.user_BD, items.vector_RD, found_BND, items.extra[ECHO])

    # What they are made of.

    def found(self, seen: SeenHistory) -> Tensor:
        """Return found_BQSD, the attended codebooks: what each code finds in a history, once per request."""
        codes_QSD = self.codebooks.codes_QSD
        found_BLD = self.student.ask(seen, codes_QSD.flatten(0, 1).unsqueeze(0))
        return found_BLD.unflatten(1, codes_QSD.shape[:2])

    def taught(self, state: TarqUserState, items: ItemState) -> Tensor:
        """Return taught_BND: what the candidates themselves find in the history, h_tar of the paper."""
        if state.teacher is None:
            raise ValueError("nobody asked for the teacher when the user was encoded")
        return self.teacher.ask(state.teacher, items.token_RD)

    def teachers_logits(self, state: TarqUserState, items: ItemState, taught_BND: Tensor) -> Tensor:
        """Return logits_BNY of the teacher, of the same form as the student's."""
        logits_BNY = self.towers(state.unit_BYD, items.vector_RD)
        echo_BND = self.teacher.value(items.token_RD)
        return logits_BNY + self.teacher_logit(state.user_BD, items.vector_RD, taught_BND, echo_BND)

    # What only training calls: model/build.py, LearnsMore.

    def before_step(self, *, share_done: float, items: ItemFeatures) -> None:
        """Initialise the codebooks once the warm-up is over; afterwards revive codes, in every pass."""
        if self.serves != "student":
            return
        since_then = share_done - float(self.revived_share)
        if not self.codebooks.ready:
            if share_done < self.warm_up_share:
                return
            self.codebooks.initialise(self.latents(items))
        # A share that is lower than the last: another pass has begun.
        elif self.revives and (since_then < 0 or since_then >= _REVIVAL_SHARE):
            self.codebooks.revive(self.latents(items))
        else:
            return
        self.revived_share.fill_(share_done)

    def extra_loss(
        self,
        state: TarqUserState,
        candidates: ItemState,
        *,
        task_loss: Callable[[Tensor], Tensor],
        valid_BN: Tensor,
        pairs: float,
    ) -> Tensor:
        """Return the teacher's loss, the distillation losses and those of the codebooks, weighted and added."""
        if self.serves != "student":
            return candidates.vector_RD.new_zeros(())
        taught_BND = self.taught(state, candidates)
        total = self.weights.teacher * task_loss(self.teachers_logits(state, candidates, taught_BND))
        valid_BN = valid_BN.to(taught_BND.dtype)
        losses = self.distillation(state, candidates, taught_BND)
        if ITEM_LOSS in candidates.extra:
            losses.append((1.0, candidates.extra[ITEM_LOSS]))
        for weight, loss_BN in losses:
            total = total + weight * (loss_BN * valid_BN).sum() / pairs
        return total

    def distillation(
        self, state: TarqUserState, candidates: ItemState, taught_BND: Tensor
    ) -> list[tuple[float, Tensor]]:
        """Return reconstruction and codebook alignment as (weight, loss_BN); nothing of them reaches the teacher.

        Reconstruction: 0.5 ||h_rq - sg(h_tar)||^2 (3.2). Alignment: at each level the symmetric KL of how near the
        codes are to the item's latent and how near the attended codes are to the teacher's output (3.3); both are then
        reduced by their level's vector. The temperature is 1 in the paper's code; another one is ours.
        """
        if state.found_BQSD is None:
            return []
        left_BND, codes_BNQ = taught_BND.detach(), candidates.extra[CODES]
        reconstruction_BN = 0.5 * (gathered(state.found_BQSD, codes_BNQ) - left_BND).square().sum(-1)
        latent_BND, alignment_BN = candidates.extra[LATENT], torch.zeros_like(reconstruction_BN)
        # Unbound, not indexed: the gradient of each index would fill a tensor of all levels with zeros.
        levels = (self.codebooks.codes_QSD.unbind(0), state.found_BQSD.unbind(1), codes_BNQ.unbind(-1))
        for code_SD, found_BSD, code_BN in zip(*levels, strict=True):
            of_item_BNS = nearness(latent_BND, code_SD, temperature=self.temperature)
            of_pair_BNS = nearness(left_BND, found_BSD, temperature=self.temperature)
            alignment_BN = alignment_BN + _symmetric_kl(of_item_BNS, of_pair_BNS)
            latent_BND = latent_BND - code_SD[code_BN]
            left_BND = left_BND - _taken(found_BSD, code_BN)
        return [(self.weights.reconstruction, reconstruction_BN), (self.weights.alignment, alignment_BN)]

    def item_loss(self, token_RD: Tensor, latent_RD: Tensor, codes_RQ: Tensor) -> Tensor:
        """Return RQ-VAE's losses of R items, weighted and added: codebooks', commitment and the autoencoder's. Ours.

        The autoencoder's is ||z + f(z) - sg(token)||^2 of the quantised latent z, whose gradient goes straight through
        to the latent (Lee et al. 2022). It is what keeps latents apart: the others are least where all are alike.
        """
        codebook_R, commitment_R = self.codebooks.losses(latent_RD, codes_RQ)
        quantised_RD = latent_RD + (self.codebooks.vectors(codes_RQ).sum(-2) - latent_RD).detach()
        told_RD = quantised_RD + self.told_again(quantised_RD)
        autoencoder_R = (told_RD - token_RD.detach()).square().sum(-1)
        weights = self.weights
        return weights.codebook * codebook_R + weights.commitment * commitment_R + weights.autoencoder * autoencoder_R

    def report(self, items: ItemFeatures) -> dict[str, float]:
        """Return utilization and perplexity of each level over the items given."""
        if self.serves != "student" or not self.codebooks.ready:
            return {}
        use = self.codebooks.use(self.codebooks.assign(self.latents(items)))
        levels = list(zip(use.utilization_Q, use.perplexity_Q, strict=True))
        return {
            **{f"code_use_{level}": share for level, (share, _) in enumerate(levels, start=1)},
            **{f"code_perplexity_{level}": perplexity for level, (_, perplexity) in enumerate(levels, start=1)},
        }

    @torch.no_grad()
    def latents(self, items: ItemFeatures) -> Tensor:
        """Return latent_RD of R items."""
        return self._latent_of(self.item_tower(items)[1])

    def _latent_of(self, token_RD: Tensor) -> Tensor:
        # Distances of half precision would choose other codes.
        with torch.autocast(token_RD.device.type, enabled=False):
            token_RD = token_RD.detach().to(self.codebooks.codes_QSD.dtype)
            return token_RD + self.latent(token_RD)


def gathered(found_BQSD: Tensor, codes_BNQ: Tensor) -> Tensor:
    """Return found_BND, h_rq of the paper: the sum over levels of what a candidate's codes found."""
    levels = zip(found_BQSD.unbind(1), codes_BNQ.unbind(-1), strict=True)
    found_BND, *others = (_taken(found_BSD, code_BN) for found_BSD, code_BN in levels)
    for of_level_BND in others:
        found_BND = found_BND + of_level_BND
    return found_BND


def nearness(vector_BND: Tensor, code_SD: Tensor, *, temperature: float) -> Tensor:
    """Return softmax over codes of -||v - c||^2 / temperature, [B, N, S]; codes may be [S, D] or each request's own.

    As softmax((2 v c - ||c||^2) / temperature): what all codes have in common, ||v||^2, changes no share. So one
    product writes what there is one of per pair and code, where distances would write it six times.
    """
    shift_S = code_SD.square().sum(-1) * (-1 / temperature)
    codes_SD = code_SD * (2 / temperature)
    if code_SD.dim() == 2:
        return F.linear(vector_BND, codes_SD, shift_S).softmax(-1)
    return torch.baddbmm(shift_S.unsqueeze(1), vector_BND, codes_SD.transpose(1, 2)).softmax(-1)


def _taken(found_BSD: Tensor, code_BN: Tensor) -> Tensor:
    return found_BSD.gather(1, code_BN.unsqueeze(-1).expand(-1, -1, found_BSD.shape[-1]))


def _symmetric_kl(p_BNS: Tensor, q_BNS: Tensor) -> Tensor:
    """As the paper's code has it, small constants included."""
    forth_BN = (p_BNS * (p_BNS / (q_BNS + _TINY) + _TINY).log()).sum(-1)
    back_BN = (q_BNS * (q_BNS / (p_BNS + _TINY) + _TINY).log()).sum(-1)
    return forth_BN + back_BN
