"""Whether speed costs quality: LYRICS_DATA=songs.csv python -m benchmarks.same_quality [WAY ...]

The tuned recipe, trained on 800 training songs of the subset profile with three seeds, in two ways: ours, and with the
numbers of the plain way: attention dropout of 0.1, which keeps PyTorch from its fast kernels, float32, and its own
dropout. What else is fast, cached states, no padding, chunks of similar length, changes no number beyond rounding, as
tests show, and is no part of this.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

import lyric_utils as lu
from benchmarks.common import Results
from benchmarks.quality import load_sides, part_of_pass
from lyric_utils import encoders, models, training
from lyric_utils.profiles import LORA_TUNED

SONGS, SEEDS = 800, (42, 43, 44)


def attend_with_dropout(query, key, value) -> torch.Tensor:
    """Attention in training, a tenth of its weights dropped."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return F.dropout(scores.softmax(-1), 0.1) @ value


ATTENTION_DROPOUT = partial(patch.object, encoders, "_attend_in_steps", attend_with_dropout)
FLOAT32 = partial(patch.object, training, "has_fast_bfloat16", lambda: False)
STOCK_DROPOUT = partial(patch.object, models, "use_fast_dropout", lambda network: None)
WAYS: dict[str, list[Callable]] = {
    "ours": [],
    "plain numbers": [ATTENTION_DROPOUT, FLOAT32, STOCK_DROPOUT],
}


def train(way: str, seed: int) -> float:
    """Validation MSE of one training."""
    sides = load_sides("artist")
    songs = np.sort(np.random.default_rng(42).permutation(len(sides["train"].table))[:SONGS])
    split = lu.Split(sides["train"].table.iloc[songs], sides["validation"].table, sides["validation"].table)
    every, held = (sides[side].frozen(LORA_TUNED.adapted_layers) for side in ("train", "validation"))
    frozen = {"train": part_of_pass(every, songs), "validation": held, "test": held}
    with ExitStack() as changes:
        for change in WAYS[way]:
            changes.enter_context(change())
        model = lu.build_model(sides["train"].encoder, LORA_TUNED, seed)
        examples = lu.make_examples(model, split, frozen)
        return lu.train(model, examples["train"], examples["validation"], seed)[-1]["validation_mse"]


def main() -> None:
    results = Results("same_quality", songs=SONGS)
    measured = results.setdefault("validation_mse", {})
    for way in sys.argv[1:] or WAYS:
        for seed in map(str, SEEDS):
            if seed in measured.get(way, {}):
                continue
            mse = train(way, int(seed))
            measured.setdefault(way, {})[seed] = round(mse, 5)
            results["rows"] = [{"way": name} | seeds for name, seeds in measured.items()]
            results.save()
            print(f"{way}, seed {seed}: {mse:.5f}", flush=True)


if __name__ == "__main__":
    main()
