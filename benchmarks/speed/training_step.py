"""Chunks per second of one training step, 12 x 768 with four adapted layers: plain, each change alone, ours.

Every way takes the same optimizer step, on the mean loss of the same 32 chunks, whose lengths are the middles of 32
equal shares of the real distribution. `paper` is the reported recipe (rank 4, [CLS]), `tuned` the shipped one. Options:
--rounds, --chunks (of a step), --at_once (chunks of one plain pass; default: as many as fit into memory).
"""

import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import psutil
import torch

from benchmarks import common
from benchmarks.speed import ways
from benchmarks.speed.memory import peak_memory
from benchmarks.speed.ways import LORA_MEAN, Changes, PlainRegressor, random_bert, random_states
from lyric_utils.features import encode_chunks
from lyric_utils.models import build_model
from lyric_utils.profiles import LORA_PAPER, Recipe
from lyric_utils.training import Examples

PLAIN = {
    "paper: plain": Changes(),
    "paper: batches of similar length only": Changes(similar_length=True),
    "paper: cached frozen layers only": Changes(cached=True),
    "paper: attention dropout off only": Changes(no_attention_dropout=True),
    "paper: bf16 only": Changes(bf16=True),
    "paper: top layer for [CLS] only": Changes(first_token_only=True),
    "tuned: plain": Changes(),
}
OURS = {"paper: ours in float32": ["float32"], "paper: ours": [], "tuned: ours": []}  # precision, unless the best
FROZEN = "frozen pass, once"
PRODUCTS = {"float32 product": torch.float32, "bfloat16 product": torch.bfloat16}
shared_bert = cache(random_bert)
shared_plain_model = cache(lambda recipe: PlainRegressor(random_bert().network, recipe).train())


def chunks_at_once() -> int:
    """Chunks that the plain way runs in one pass: 32, which take about 12 GiB, or fewer on a smaller machine."""
    memory = psutil.virtual_memory().total / 2**30
    return next(count for count in (32, 16, 8, 4) if count == 4 or memory > 18 * count / 32)


def recipe_of(name: str) -> Recipe:
    return LORA_PAPER if name.startswith("paper") else LORA_MEAN


def make_way(name: str, chunks, at_once: int) -> Callable[[], object]:
    """The function that takes one step in that way, which all changes of a recipe take on one model."""
    recipe, valence = recipe_of(name), np.random.default_rng(0).uniform(size=len(chunks.input_ids))
    states = random_states(chunks, 768)
    if name == FROZEN:
        return lambda: encode_chunks(shared_bert(), chunks, recipe.adapted_layers, states.rows)
    if name in OURS:
        step = ways.our_step(build_model(shared_bert(), recipe).train(), Examples(states, valence))
        return lambda: step(*OURS[name])
    states = [states.read([item])[0].float() for item in range(len(valence))] if PLAIN[name].cached else None
    step = ways.plain_step(shared_plain_model(recipe), chunks.input_ids, valence, states, at_once)
    return lambda: step(PLAIN[name])


def main() -> None:
    if sys.argv[1:2] == ["--memory-of"]:
        way, chunks, at_once = sys.argv[2:]
        make_way(way, common.random_chunks(common.chunk_lengths(int(chunks))), int(at_once))()
        return print(peak_memory())
    options = common.read_options("training_step", rounds=5, chunks=32, at_once=chunks_at_once())
    results = common.Results("training_step", chunks=options.chunks, chunks_of_plain_pass=options.at_once)
    sizes = str(options.chunks), str(options.at_once)
    common.measure_memory(results, "benchmarks.speed.training_step", [*PLAIN, *OURS], *sizes)
    chunks, few = (common.random_chunks(common.chunk_lengths(count)) for count in (options.chunks, 4))
    steps = {name: make_way(name, chunks, options.at_once) for name in [*PLAIN, *OURS, FROZEN]}
    products = {name: common.matrix_product(dtype) for name, dtype in PRODUCTS.items()}
    first = [make_way(name, few, options.at_once) for name in steps]  # four chunks show it all kernels
    for way in [*first, *products.values()]:
        way()  # the first call of a kernel is slow
    common.interleave(results, steps | products, options.rounds)
    results.finish(summarise(results, chunks.lengths))


def summarise(results: common.Results, lengths) -> list[dict]:
    """One row per way. An epoch is extrapolated: chunks of 24,000 songs over the measured chunks per second."""
    rows, epoch = [], common.PAPER_SONGS * common.CHUNKS_PER_SONG / len(lengths)
    limits = {name.split()[0]: common.product_rate(results.median(name)) for name in PRODUCTS}
    for name in [*PLAIN, *OURS]:
        seconds = results.median(name)
        rate = ways.adapted_flops(lengths, 768, 3_072, recipe_of(name)) / seconds
        cached = name in OURS or PLAIN[name].cached
        row = {"way": name, "chunks_per_second": round(len(lengths) / seconds, 3)}
        row |= results.ratio(name, f"{name.split(':')[0]}: plain")
        row["peak_mib"] = round(results["peak_mib"][name])
        row |= {f"share_of_{limit}_limit": round(rate / most, 3) for limit, most in limits.items()}
        row["epoch_seconds_extrapolated"] = round(epoch * seconds)
        row["frozen_pass_seconds_extrapolated"] = round(epoch * results.median(FROZEN)) if cached else 0
        rows.append(row | {f"{limit}_gflops": round(most / 1e9) for limit, most in limits.items()})
    return rows


if __name__ == "__main__":
    main()
