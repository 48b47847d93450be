"""Whether speed costs quality: python -m benchmarks.speed.same_quality

The tuned recipe, trained on 800 training songs of the subset profile with three seeds, in two ways: ours, and with the
numbers of the plain way: attention dropout of 0.1, which keeps PyTorch from its fast kernels, and float32. (The stored
results had PyTorch's own dropout as well, and 800 songs of an earlier split.) What else is fast, cached features, no
padding, chunks of similar length, changes no number beyond rounding, as tests show, and is not part of this.
"""

from dataclasses import replace

import numpy as np

from benchmarks.common import Results
from benchmarks.quality.measure import SEEDS
from benchmarks.quality.methods import METHODS, Method, problems
from lyric_utils.profiles import LORA_TUNED

SONGS = 800
WAYS = {
    "ours": METHODS["lora"],
    "plain numbers": Method("", recipe=replace(LORA_TUNED, attention_dropout=0.1), options={"precision": "float32"}),
}


def main() -> None:
    results = Results("same_quality", songs=SONGS)
    measured = results.setdefault("validation_mse", {})
    [problem] = problems("test", "subset")
    drawn = np.sort(np.random.default_rng(42).permutation(len(problem.train))[:SONGS])
    learned = {"train": problem.train[drawn], "targets": problem.targets[drawn]}
    problem = replace(problem, **learned, held=problem.validation)
    for way, method in WAYS.items():
        for seed in SEEDS:
            if str(seed) not in measured.setdefault(way, {}):
                mse = method.train(problem, seed).history[-1]["validation_mse"]
                measured[way][str(seed)] = round(mse, 5)
                results.finish([row_of(*item) for item in measured.items()])


def row_of(way: str, seeds: dict[str, float]) -> dict:
    mean = round(sum(seeds.values()) / len(seeds), 5)
    return {"way": way, **{f"seed {seed}": mse for seed, mse in seeds.items()}, "mean": mean}


if __name__ == "__main__":
    main()
