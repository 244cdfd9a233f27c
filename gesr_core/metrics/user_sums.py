"""What the metrics of one publication are made of, summed over users, for the data and for each replicate. numpy.

Runs in a Spark Python worker over the rows of `pairs.user_rows`, one per user: the pairs of all users of an Arrow batch
are put in order at once. What leaves a partition are sums alone, one row per segment and ordering; a metric is a ratio
of two of them, or follows from a few (`values.py`).

Legend: U users of a batch, P their pairs (sorted by user, then item id), C columns of the sums, R replicates and the
data themselves before them (`bootstrap.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gesr_core.metrics.bootstrap import draws
from gesr_core.metrics.ranking import ALL, MODEL, ORDERINGS, POPULARITY, RANDOM, RETRIEVAL, WITHOUT_TOP_ITEM

SUMS_TYPE: Final = "segment string, ordering string, partition int, sums array<double>"
_SUMS_SCHEMA: Final = pa.schema(
    [
        ("segment", pa.string()),
        ("ordering", pa.string()),
        ("partition", pa.int32()),
        ("sums", pa.list_(pa.float64())),
    ]
)

Totals = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Plan:
    """What is summed; travels to the workers.

    - `ks`: cuts, none above `published_k`, the places that the model published: every ordering ends there.
    - `user_segments`: names of the users' own segments, which a row numbers.
    - `pair_segments`: names of the segments of pairs; a pair's mask has a bit for each.
    - `calibration_edges`: logits between the bins of the calibration curve, ascending.
    - `auc_edges`: values between the bins of each ordering, of which the spread of AUC is estimated.
    - `active_users`: users that popularity counts among, of whom novelty is a share.
    """

    ks: tuple[int, ...]
    published_k: int
    user_segments: tuple[str, ...]
    pair_segments: tuple[str, ...]
    without_top_item: bool
    calibration_edges: tuple[float, ...]
    auc_edges: Mapping[str, tuple[float, ...]]
    active_users: int
    replicates: int

    def columns(self, ordering: str) -> list[str]:
        """Return the names of the sums of an ordering, in their order."""
        at_k = ("recall", "ndcg", "mrr", "recall_of_retrieved", "ndcg_of_retrieved", "novelty")
        names = [f"{name}@{k}" for name in at_k for k in self.ks]
        names += ["buyers", "finders", "listed", "bought", "retrieved", "surviving"]
        names += ["picked", "picked_retrieved", "picked_surviving", "pickers"]
        names += ["gauc", "gauc_pairs", "gauc_users", "pairs", "positives", "published"]
        bins = len(self.auc_edges[ordering]) + 1
        names += [f"{label}@{b}" for label in ("auc_negatives", "auc_positives") for b in range(bins)]
        if ordering == MODEL:
            names.append("loss")
            kinds = ("bin_pairs", "bin_predicted", "bin_positives")
            names += [f"{kind}@{b}" for kind in kinds for b in range(len(self.calibration_edges) + 1)]
        return names


@dataclass(frozen=True)
class Users:
    """The rows of a batch, flat; numbers are float64 and NaN where there is none.

    `place_P`: in retrieval order; `rank_P`: as published; `popularity_P`: users of the item; `mask_P`: segments of the
    pair; `top_P`: it is the window's most bought item. `member_M`, `segment_M`: user (its row) and number of a segment
    of it.
    """

    hash_U: np.ndarray
    member_M: np.ndarray
    segment_M: np.ndarray
    user_P: np.ndarray
    place_P: np.ndarray
    rank_P: np.ndarray
    score_P: np.ndarray
    logit_P: np.ndarray
    bought_P: np.ndarray
    picked_P: np.ndarray
    top_P: np.ndarray
    popularity_P: np.ndarray
    random_P: np.ndarray
    mask_P: np.ndarray

    @staticmethod
    def of(batch: pa.RecordBatch) -> Users:
        """Take a batch of `pairs.user_rows` apart."""
        rows = np.arange(batch.num_rows)

        def owners(name: str) -> np.ndarray:
            return np.repeat(rows, batch.column(name).value_lengths().to_numpy(zero_copy_only=False))

        def numbers(name: str) -> np.ndarray:
            flat = pc.cast(batch.column(name).flatten(), pa.float64(), safe=False)
            return np.asarray(pc.fill_null(flat, np.nan).to_numpy(zero_copy_only=False))

        def flags(name: str) -> np.ndarray:
            return np.asarray(pc.fill_null(batch.column(name).flatten(), False).to_numpy(zero_copy_only=False))

        return Users(
            hash_U=batch.column("draw").to_numpy(zero_copy_only=False),
            member_M=owners("segments"),
            segment_M=batch.column("segments").flatten().to_numpy(zero_copy_only=False),
            user_P=owners("place"),
            place_P=numbers("place"),
            rank_P=numbers("rank"),
            score_P=numbers("score"),
            logit_P=numbers("logit"),
            bought_P=flags("bought"),
            picked_P=flags("picked"),
            top_P=flags("top"),
            popularity_P=numbers("popularity"),
            random_P=numbers("random"),
            mask_P=np.asarray(batch.column("mask").flatten().to_numpy(zero_copy_only=False)),
        )

    def values(self, ordering: str) -> np.ndarray:
        """Return the values of an ordering by which pairs are compared across users; the higher, the better."""
        if ordering == RETRIEVAL:
            # What was published and is retrieved no more stands before all places.
            return -np.nan_to_num(self.place_P)
        return {MODEL: self.score_P, POPULARITY: self.popularity_P, RANDOM: self.random_P}[ordering]

    def ranks(self, ordering: str) -> np.ndarray:
        """Return each candidate's place among its user's candidates, from 1; infinite where it has none."""
        value_P = -self.rank_P if ordering == MODEL else self.values(ordering)
        return places(self.user_P, np.where(np.isnan(self.place_P), np.nan, value_P))


def sum_partition(batches: Iterable[pa.RecordBatch], plan: Plan, *, partition: int) -> Iterator[pa.RecordBatch]:
    """Sum the users of a partition; yields one batch of `SUMS_TYPE`."""
    totals: Totals = {}
    for batch in batches:
        for key, sums in sum_users(Users.of(batch), plan).items():
            totals[key] = totals[key] + sums if key in totals else sums
    keys = sorted(totals)
    yield pa.RecordBatch.from_arrays(
        [
            pa.array([segment for segment, _ in keys], pa.string()),
            pa.array([ordering for _, ordering in keys], pa.string()),
            pa.array([partition] * len(keys), pa.int32()),
            pa.array([totals[key].ravel() for key in keys], pa.list_(pa.float64())),
        ],
        schema=_SUMS_SCHEMA,
    )


def add_partitions(rows: pa.Table) -> pa.Table:
    """Add the sums of one segment and ordering up, in the order of the partitions: the same bits in every run."""
    ordered = rows.sort_by("partition")
    total = sum(values.values.to_numpy() for values in ordered.column("sums"))
    return pa.table([*(ordered.column(name)[:1] for name in _SUMS_SCHEMA.names[:3]), [total]], schema=_SUMS_SCHEMA)


def sum_users(users: Users, plan: Plan) -> Totals:
    """Return the sums [R, C] of each segment and ordering."""
    drawn_UR = draws(users.hash_U, replicates=plan.replicates)
    everything = np.ones(len(users.user_P), bool)
    totals: Totals = {}
    for ordering in ORDERINGS:
        rank_P = users.ranks(ordering)
        names = plan.columns(ordering)

        def table(kept_P: np.ndarray, place_P: np.ndarray, *, whole: bool) -> np.ndarray:
            found = _per_user(users, plan, ordering, rank_P, place_P, kept_P, whole=whole)  # noqa: B023
            return np.stack([found.get(name, np.zeros(len(users.hash_U))) for name in names], axis=1)  # noqa: B023

        of_all_UC = table(everything, rank_P, whole=True)
        totals[ALL, ordering] = drawn_UR.T @ of_all_UC
        for number, name in enumerate(plan.user_segments):
            members = users.member_M[users.segment_M == number]
            if len(members):
                totals[name, ordering] = drawn_UR[members].T @ of_all_UC[members]
        for bit, name in enumerate(plan.pair_segments):
            kept_P = (users.mask_P >> bit) & 1 == 1
            totals[name, ordering] = drawn_UR.T @ table(kept_P, rank_P, whole=False)
        if plan.without_top_item:
            moved_P = rank_P - (_rank_of_top(users, rank_P) < rank_P)
            totals[WITHOUT_TOP_ITEM, ordering] = drawn_UR.T @ table(~users.top_P, moved_P, whole=False)
    return totals


def places(user_P: np.ndarray, value_P: np.ndarray) -> np.ndarray:
    """Return each pair's place among its user's by falling value, from 1; infinite where the value is NaN.

    Of equal values the earlier pair stands first.
    """
    known = np.flatnonzero(~np.isnan(value_P))
    # Stable: pairs come sorted by item id.
    order = known[np.lexsort((-value_P[known], user_P[known]))]
    found_P = np.full(len(value_P), np.inf)
    found_P[order] = np.arange(len(order)) - _starts(user_P[order]) + 1
    return found_P


def pairs_won(user_P: np.ndarray, value_P: np.ndarray, positive_P: np.ndarray, *, users: int) -> np.ndarray:
    """Return per user how many (positive, negative) pairs stand in the right order, a tie counting one half [U]."""
    order = np.lexsort((value_P, user_P))
    user_P, value_P, positive_P = user_P[order], value_P[order], positive_P[order]
    # The mean of the places that equal values of a user share (Mann and Whitney's midrank).
    tied_P = _starts(user_P, value_P)
    first_P = tied_P - _starts(user_P) + 1
    size_P = np.bincount(tied_P, minlength=len(tied_P) or 1)[tied_P]
    midrank_P = first_P + (size_P - 1) / 2
    rank_sum_U = np.bincount(user_P[positive_P], midrank_P[positive_P], minlength=users)
    positives_U = np.bincount(user_P[positive_P], minlength=users)
    return np.asarray(rank_sum_U - positives_U * (positives_U + 1) / 2)


def log_loss(logit_P: np.ndarray, label_P: np.ndarray) -> np.ndarray:
    """Return log(1 + e^x) - y x, without overflow at large |x|."""
    return np.asarray(np.maximum(logit_P, 0) - logit_P * label_P + np.log1p(np.exp(-np.abs(logit_P))))


def _per_user(
    users: Users,
    plan: Plan,
    ordering: str,
    rank_P: np.ndarray,
    place_P: np.ndarray,
    kept_P: np.ndarray,
    *,
    whole: bool,
) -> dict[str, np.ndarray]:
    """What each user adds to the sums in one ordering, of the pairs that are kept.

    `rank_P` says what is within the published K, `place_P` where a pair stands among what is left; novelty is of
    `whole` lists alone.
    """
    found = _of_lists(users, plan, rank_P, place_P, kept_P)
    found |= _of_published(users, plan, ordering, kept_P)
    return found | (_novelty(users, plan, rank_P) if whole else {})


def _of_lists(
    users: Users, plan: Plan, rank_P: np.ndarray, place_P: np.ndarray, kept_P: np.ndarray
) -> dict[str, np.ndarray]:
    """What was bought, and what the late ranker took, against the places of an ordering."""
    size = len(users.hash_U)

    def count(where_P: np.ndarray) -> np.ndarray:
        return np.bincount(users.user_P[where_P], minlength=size).astype(float)

    wanted_P, taken_P = users.bought_P & kept_P, users.picked_P & kept_P
    is_retrieved_P, is_within_P = ~np.isnan(users.place_P), rank_P <= plan.published_k
    bought_U, retrieved_U = count(wanted_P), count(wanted_P & is_retrieved_P)
    picked_U = count(taken_P)
    found = {
        "bought": bought_U,
        "retrieved": retrieved_U,
        "surviving": count(wanted_P & is_within_P),
        "picked": picked_U,
        "picked_retrieved": count(taken_P & is_retrieved_P),
        "picked_surviving": count(taken_P & is_within_P),
        "buyers": (bought_U > 0).astype(float),
        "finders": (retrieved_U > 0).astype(float),
        "pickers": (picked_U > 0).astype(float),
    }
    hit = np.flatnonzero(wanted_P & is_within_P)
    user_H, place_H = users.user_P[hit], place_P[hit]
    first_U = np.full(size, np.inf)
    np.minimum.at(first_U, user_H, place_H)
    for k in plan.ks:
        near = place_H <= k
        hits_U = np.bincount(user_H[near], minlength=size).astype(float)
        gain_U = np.bincount(user_H[near], 1 / np.log2(1 + place_H[near]), minlength=size)
        best = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
        found[f"mrr@{k}"] = np.where(first_U <= k, 1 / first_U, 0.0)
        for end, positives_U in (("", bought_U), ("_of_retrieved", retrieved_U)):
            ideal_U = best[np.minimum(positives_U, k).astype(int)]
            found[f"recall{end}@{k}"] = _over(hits_U, positives_U)
            found[f"ndcg{end}@{k}"] = _over(gain_U, ideal_U)
    return found


def _of_published(users: Users, plan: Plan, ordering: str, kept_P: np.ndarray) -> dict[str, np.ndarray]:
    """AUC, log loss and calibration over the published pairs of users who have candidates."""
    size = len(users.hash_U)
    has_candidates_U = np.bincount(users.user_P[~np.isnan(users.place_P)], minlength=size) > 0
    at = np.flatnonzero(kept_P & ~np.isnan(users.rank_P) & has_candidates_U[users.user_P])
    user_A, value_A, bought_A = users.user_P[at], users.values(ordering)[at], users.bought_P[at]
    pairs_U = np.bincount(user_A, minlength=size).astype(float)
    positives_U = np.bincount(user_A[bought_A], minlength=size).astype(float)
    comparisons_U = positives_U * (pairs_U - positives_U)
    has_both_U = comparisons_U > 0
    won_U = pairs_won(user_A, value_A, bought_A, users=size)
    found = {
        "pairs": pairs_U,
        "positives": positives_U,
        "published": (pairs_U > 0).astype(float),
        "gauc": _over(won_U, comparisons_U) * pairs_U,
        "gauc_pairs": np.where(has_both_U, pairs_U, 0.0),
        "gauc_users": has_both_U.astype(float),
    }
    bin_A = np.searchsorted(plan.auc_edges[ordering], value_A, side="right")
    bins = len(plan.auc_edges[ordering]) + 1
    for name, of_A in (("auc_negatives", ~bought_A), ("auc_positives", bought_A)):
        found |= _by_bin(name, user_A[of_A], bin_A[of_A], None, size=size, bins=bins)
    if ordering == MODEL:
        logit_A = users.logit_P[at]
        found["loss"] = np.bincount(user_A, log_loss(logit_A, bought_A), minlength=size)
        bin_A = np.searchsorted(plan.calibration_edges, logit_A, side="right")
        bins = len(plan.calibration_edges) + 1
        predicted_A = np.exp(-np.logaddexp(0, -logit_A))
        for name, weight_A in (
            ("bin_pairs", None),
            ("bin_predicted", predicted_A),
            ("bin_positives", bought_A.astype(float)),
        ):
            found |= _by_bin(name, user_A, bin_A, weight_A, size=size, bins=bins)
    return found


def _novelty(users: Users, plan: Plan, rank_P: np.ndarray) -> dict[str, np.ndarray]:
    """Mean self-information of a user's first k; an item that nobody had counts as one that one user had."""
    size = len(users.hash_U)
    bits_P = np.log2(max(plan.active_users, 1)) - np.log2(np.maximum(users.popularity_P, 1))
    found = {}
    for k in plan.ks:
        near = rank_P <= k
        count_U = np.bincount(users.user_P[near], minlength=size)
        found[f"novelty@{k}"] = _over(np.bincount(users.user_P[near], bits_P[near], minlength=size), count_U)
        found["listed"] = (count_U > 0).astype(float)
    return found


def _by_bin(
    name: str, user_A: np.ndarray, bin_A: np.ndarray, weight_A: np.ndarray | None, *, size: int, bins: int
) -> dict[str, np.ndarray]:
    sums_UB = np.bincount(user_A * bins + bin_A, weight_A, minlength=size * bins).reshape(size, bins)
    return {f"{name}@{b}": sums_UB[:, b].astype(float) for b in range(bins)}


def _rank_of_top(users: Users, rank_P: np.ndarray) -> np.ndarray:
    """Return, for each pair, the rank of the window's most bought item in its user's ordering; infinite without."""
    rank_U = np.full(len(users.hash_U), np.inf)
    rank_U[users.user_P[users.top_P]] = rank_P[users.top_P]
    return rank_U[users.user_P]


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Return, for each element of sorted keys, where its run of equal ones begins."""
    changes = np.zeros(len(keys[0]), bool)
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.maximum.accumulate(np.where(changes, np.arange(len(changes)), 0)) if len(changes) else np.zeros(0, int)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide; 0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
