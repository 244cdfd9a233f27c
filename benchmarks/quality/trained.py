"""Train a configured model as a nightly system would, and score each test ds as serving does. No JVM.

The model is whatever `models.<name>` says: nothing here knows one. The order of events: the training dates with the
validation ds for early stopping, then ds after ds, each learned once its labels have closed (`catch_up_rate`).

Legend: R items, P pairs, B requests, N candidates, S tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from benchmarks.quality.folders import draft_folder
from benchmarks.quality.prepared import Prepared, Step, TestSet
from gesr_core.config import Config
from gesr_core.content import json_bytes
from gesr_core.dates import request_time_us
from gesr_core.errors import ConfigurationError
from gesr_core.model.build import Model, build_model
from gesr_core.names import Col
from gesr_core.runtime.collate import decode
from gesr_core.runtime.device import CPU_BATCH_PAIRS
from gesr_core.runtime.plan import ScorerSettings, plan_micro_batches
from gesr_core.runtime.scorer import Scorer
from gesr_core.training.data import index_of, sorted_by_key
from gesr_core.training.features import FeatureSpace
from gesr_core.training.loop import learn_date, train
from gesr_core.training.readers import RequestReader
from gesr_core.training.trainer import TrainingSet, fit_features, training_data, training_settings

_CODES: Final = "codes_RQ"


@dataclass(frozen=True)
class Scored:
    """A test ds as a model scores it: score and task logits per pair of the test set, and what was found on the way."""

    test: TestSet
    score_P: np.ndarray
    logit_PS: np.ndarray
    facts: Mapping[str, Any]


def learn_and_score(
    prepared: Prepared, config: Config, *, served: Config, model_name: str, kept: Path, on_validation: bool = False
) -> Iterator[Scored]:
    """Yield each test ds as the model stood then; or the validation ds alone, not yet learned.

    Args:
        prepared: the data.
        config: what to train from.
        served: what to score from: `config`, or one whose model has the same weights and serves another logit of them.
        model_name: a section of `models`.
        kept: where the weights are kept; what is there already is not trained again.
        on_validation: measure on the validation ds, which is then not learned.

    Raises:
        ConfigurationError: what is measured on the validation ds would be learned (`training.catch_up_rate`).
    """
    if on_validation and config.training.catch_up_rate:
        raise ConfigurationError("measured on the validation ds, a model must not catch up with it")
    regime = prepared.regime
    steps = (Step(regime.validation, regime.validation),) if on_validation else regime.steps
    data = prepared.training_set()
    features = fit_features(data, config)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Cells that share their weights may begin at once: one trains.
    with FileLock(f"{kept}.lock"):
        if not kept.is_dir():
            with draft_folder(kept) as draft:
                _learn(prepared, data, features, config, model_name=model_name, steps=steps, folder=draft)
    model = build_model(served.models[model_name], features.sizes)
    for number, step in enumerate(steps):
        started_s = time.monotonic()
        model.load_state_dict(load_file(weights_file(kept, number)))
        test = prepared.test(step.test)
        table = prepared.items([step.test])[step.test]
        logit_PS, codes_used = score_pairs(model, test, table, features, config=served)
        weights = np.asarray(served.labels.score_weights(features.tasks))
        facts = json.loads(_facts(kept, number).read_bytes())
        facts |= {"codes_used": codes_used, "codes": getattr(served.models[model_name], "codes", None)}
        facts |= {"score_s": time.monotonic() - started_s}
        yield Scored(test, logit_PS @ weights, logit_PS, facts)


def _learn(
    prepared: Prepared,
    data: TrainingSet,
    features: FeatureSpace,
    config: Config,
    *,
    model_name: str,
    steps: Sequence[Step],
    folder: Path,
) -> None:
    """Train, then learn date after date; write the weights that each step is measured with, and what is known of it."""
    started_s = time.monotonic()
    torch.manual_seed(config.training.seed)
    model = build_model(config.models[model_name], features.sizes)
    training = training_data(data, features)
    settings = training_settings(config)
    # Its end learns the validation ds, unless that is what is measured: it is what the first step asks for.
    result = train(model, training, settings=settings)
    model.load_state_dict(result.weights)
    # Different pairs, however many epochs saw them.
    pairs = count_pairs(data.training) + (count_pairs(data.validation) if config.training.catch_up_rate else 0)
    facts: dict[str, Any] = {
        "epochs": [dict(epoch) for epoch in result.epochs], "best_epoch": result.best_epoch,
        "parameters": sum(p.numel() for p in model.parameters()), "items_known": len(features.item_ids),
    }  # fmt: skip
    for number, step in enumerate(steps):
        if number:
            reader = prepared.learn(step.learn)
            learn_date(model, training, reader=reader, settings=settings)
            pairs += count_pairs(reader)
        save_file(dict(model.state_dict()), weights_file(folder, number))
        known = {**facts, "pairs_learned": pairs, "train_s": time.monotonic() - started_s}
        _facts(folder, number).write_bytes(json_bytes(known))


def weights_file(folder: Path, number: int) -> Path:
    """Return the weights that a step is measured with."""
    return folder / f"step-{number}.safetensors"


def _facts(folder: Path, number: int) -> Path:
    return folder / f"step-{number}.json"


def count_pairs(reader: RequestReader) -> int:
    """Count the labelled pairs of some request rows."""
    return sum(len(batch.column(Col.CANDIDATE_ITEM_ID).flatten()) for batch in reader.batches())


def score_pairs(
    model: torch.nn.Module, test: TestSet, items: pa.Table, features: FeatureSpace, *, config: Config
) -> tuple[np.ndarray, list[int]]:
    """Return the logits [P, S] of a test set's pairs by the scorer that serves, and how many codes each level uses."""
    model.eval()
    ordered = sorted_by_key(items)
    with torch.inference_mode():
        states = cast(Model, model).encode_items(features.encode_items(ordered))
    settings = scorer_settings(config, features, ds=test.ds)
    scorer = Scorer(
        model,
        items=states,
        index=index_of(ordered),
        encode_users=features.encode_users,
        actions=features.actions,
        settings=settings,
        device=torch.device("cpu"),
    )
    # Tests may add columns of theirs; one batch, so that pairs keep the test set's order.
    batch = test.rows.combine_chunks().to_batches()[0]
    jagged = decode(
        batch,
        index=scorer.index,
        encode_users=features.encode_users,
        actions=features.actions,
        request_time_s=settings.request_time_s,
    )
    logit_PS = np.zeros((len(test.item_P), len(features.tasks)), dtype=np.float64)
    starts_B = jagged.candidate_offsets[:-1]
    with torch.inference_mode():
        for micro_batch in plan_micro_batches(jagged.history_length_B, jagged.count_B, settings=settings):
            logits_BNS, _ = scorer.logits(jagged, micro_batch)
            place_N = torch.arange(logits_BNS.shape[1])
            there_BN = place_N < jagged.count_B[micro_batch.select].unsqueeze(1)
            pair_BN = starts_B[micro_batch.select].unsqueeze(1) + place_N
            logit_PS[pair_BN[there_BN].numpy()] = logits_BNS[there_BN].double().numpy()
    return logit_PS, codebook_use(states.extra)


def codebook_use(extra: Mapping[str, torch.Tensor]) -> list[int]:
    """Return how many different codes each level uses over the whole catalogue; empty where items bear no codes."""
    if _CODES not in extra:
        return []
    codes_RQ = extra[_CODES]
    return [len(torch.unique(codes_RQ[:, level])) for level in range(codes_RQ.shape[1])]


def scorer_settings(config: Config, features: FeatureSpace, *, ds: str) -> ScorerSettings:
    """Return what a ds is scored with, as the configuration has it."""
    section = config.scoring
    return ScorerSettings(
        request_time_s=request_time_us(ds) // 1_000_000,
        tasks=features.tasks,
        score_weights=config.labels.score_weights(features.tasks),
        top_k=section.top_k,
        batch_pairs=CPU_BATCH_PAIRS,
        plan_window_requests=section.plan_window_requests,
        history_buckets=tuple(section.history_buckets),
        candidate_buckets=tuple(section.candidate_buckets),
    )
