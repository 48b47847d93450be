"""What the benchmarks share: songs of real length, interleaved timing, peak memory, the machine, results as JSON."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import lyric_utils as lu
from lyric_utils._files import replacing
from lyric_utils._packed import best_device, best_precision
from lyric_utils.checkpoints import versions
from lyric_utils.chunking import Chunks

SPEED, ROBUSTNESS = (Path(__file__).parent / name / "results" for name in ("speed", "robustness"))
PRODUCTS = 10  # of a measured matrix product: one alone would be over before the cores are warm
PAPER_SONGS = 24_000  # training songs of the reported experiment

# Tokens of a song, [CLS] and [SEP] aside: 128 quantiles (the middles of 128 equal shares) of the 6,424 songs of the
# public subset, by MiniLM's tokenizer, which is that of bert-base-uncased. Cut into windows of 512 that share 128, they
# give 1.070 chunks per song and 247.3 tokens per chunk; the songs themselves give 1.072 and 247.5.
SONG_TOKENS = [
    *(3, 17, 36, 55, 67, 75, 80, 87, 91, 95, 100, 104, 107, 110, 114, 116, 118, 121, 124, 127, 129, 131, 133, 135, 138),
    *(140, 142, 144, 147, 149, 151, 153, 155, 156, 159, 161, 163, 164, 166, 168, 170, 173, 174, 176, 178, 181, 183),
    *(185, 188, 189, 191, 193, 196, 198, 200, 202, 204, 207, 209, 211, 213, 215, 217, 219, 221, 223, 226, 229, 231),
    *(233, 236, 238, 240, 243, 245, 248, 250, 253, 256, 258, 262, 265, 267, 270, 272, 275, 278, 281, 284, 288, 292),
    *(294, 298, 301, 305, 309, 313, 317, 322, 325, 329, 333, 338, 343, 348, 352, 357, 362, 370, 375, 383, 390, 400),
    *(409, 417, 429, 443, 458, 473, 497, 522, 548, 585, 632, 682, 744, 831, 1050),
]


def windows(tokens: int, max_length: int = 512, stride: int = 128) -> list[int]:
    """Lengths of the chunks that `lyric_utils.chunk_lyrics` cuts a song of so many tokens into."""
    room = max_length - 2
    return [min(tokens - start, room) + 2 for start in range(0, max(tokens - stride, 1), room - stride)]


CHUNK_LENGTHS = [length for tokens in SONG_TOKENS for length in windows(tokens)]
CHUNKS_PER_SONG = len(CHUNK_LENGTHS) / len(SONG_TOKENS)


def song_tokens(songs: int) -> np.ndarray:
    """Tokens of each of so many songs, in the real distribution, in a fixed random order."""
    return _spread(SONG_TOKENS, songs, "hazen")


def chunk_lengths(chunks: int) -> np.ndarray:
    """The same for chunks."""
    return _spread(CHUNK_LENGTHS, chunks, "linear")


def _spread(values: list[int], count: int, method: str) -> np.ndarray:
    quantiles = np.quantile(values, (np.arange(count) + 0.5) / count, method=method).round().astype(int)
    return np.random.default_rng(0).permutation(quantiles)


def random_chunks(lengths, song_index=None) -> Chunks:
    """Chunks of random tokens, each a song of its own unless `song_index` is given."""
    rng = np.random.default_rng(0)
    input_ids = [rng.integers(1_000, 30_522, length).astype(np.int32) for length in lengths]
    return Chunks(input_ids, np.arange(len(input_ids)) if song_index is None else song_index)


def synthetic_songs(tokens, tokenizer) -> pd.DataFrame:
    """A song table of random lines of the 150 shipped songs, each song cut at its number of tokens."""
    text = lu.load_source(lu.load_profile("sample"))["lyrics"].str.cat(sep="\n")
    lines = [line.split() for line in text.split("\n") if line.strip()]
    cost = {word: len(tokenizer.tokenize(word)) for line in lines for word in line}
    rng = np.random.default_rng(0)

    def song(left: int) -> str:
        text = []
        while left > 0:
            for word in lines[rng.integers(len(lines))]:
                left -= cost[word]
                if left >= 0:
                    text.append(word)
            text.append("\n")
        return " ".join(text).strip() or "la"

    names = [f"song {number}" for number in range(len(tokens))]
    table = {"row": range(len(tokens)), "artist": names, "title": names, "lyrics": [song(count) for count in tokens]}
    return pd.DataFrame(table | {"valence": rng.uniform(size=len(tokens))})


def read_options(program: str, **options: int) -> argparse.Namespace:
    """Command-line options with whole numbers as values, and their defaults."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.speed.{program}")
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def interleave(results: "Results", ways: dict[str, Callable[[], object]], rounds: int) -> None:
    """Run every way once per round, in turns, and save the seconds after each, so that a killed benchmark goes on.

    Forwards in even rounds and backwards in odd ones, so that no way always follows the same other one. When the ways
    have changed, all are timed anew: times of another day do not compare.
    """
    if results.get("ways") != list(ways):
        results |= {"ways": list(ways), "seconds": {}}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            taken = results["seconds"].setdefault(name, [])
            if len(taken) > number:
                continue
            started = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
            results.save()
            print(f"round {number + 1}/{rounds}  {taken[-1]:9.3f} s  {name}", flush=True)


@contextmanager
def empty_cache() -> Iterator[None]:
    """An empty folder as `LYRICS_CACHE`."""
    before = os.environ.get("LYRICS_CACHE", "")
    with tempfile.TemporaryDirectory(prefix="lyrics_cache_") as folder:
        os.environ["LYRICS_CACHE"] = folder
        try:
            yield
        finally:
            os.environ["LYRICS_CACHE"] = before


def matrix_product(dtype: torch.dtype, size: int = 4096) -> Callable[[], object]:
    """A way that multiplies two large square matrices `PRODUCTS` times: the machine's limit, see `product_rate`."""
    left, right = (torch.randn(size, size, device=best_device()).to(dtype) for _ in range(2))
    return lambda: [left @ right for _ in range(PRODUCTS)]


def product_rate(seconds: float, size: int = 4096) -> float:
    """Floating-point operations per second of a `matrix_product`."""
    return PRODUCTS * 2 * size**3 / seconds


def measure_memory(results: "Results", module: str, ways, *arguments: str) -> None:
    """Peak memory of each way in a process of its own: `python -m MODULE --memory-of WAY ...` prints it last."""
    for way in ways:
        if way not in results["peak_mib"]:
            command = [sys.executable, "-m", module, "--memory-of", way, *arguments]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results["peak_mib"][way] = float(output.split()[-1])
            results.save()
            print(f"peak memory  {results['peak_mib'][way]:9.0f} MiB  {way}", flush=True)


def read_json(path: Path) -> dict:
    """A file of results, or an empty one."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write_json(path: Path, content: dict | list, indent: int | None = 1) -> None:
    """Write a file of results, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def machine() -> dict[str, object]:
    """The processor and the versions that timings depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", cpuinfo)
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": best_precision(),
        "versions": versions(),
    }


class Results(dict):
    """The JSON file of a benchmark: `machine`, `settings`, `ways`, `seconds` (way -> one number per round), `peak_mib`.

    A file of the same machine and the same settings is continued; any other is begun anew.
    """

    def __init__(self, name: str, folder: Path = SPEED, **settings):
        self.path = folder / f"{name}.json"
        start = {"machine": machine(), "settings": settings}
        found = read_json(self.path)
        super().__init__(found if start.items() <= found.items() else start | {"seconds": {}, "peak_mib": {}})

    def save(self) -> None:
        write_json(self.path, self)

    def finish(self, rows: list[dict]) -> None:
        """Save and print what is reported."""
        self["rows"] = rows
        self.save()
        print(*rows, sep="\n", flush=True)

    def median(self, way: str) -> float:
        return float(np.median(self["seconds"][way]))

    def ratio(self, way: str, plain: str) -> dict[str, float]:
        """How many times as fast as `plain`: of the medians, and the smallest and largest of the single rounds."""
        pairs = np.array(self["seconds"][plain]) / np.array(self["seconds"][way])
        ratios = self.median(plain) / self.median(way), pairs.min(), pairs.max()
        return {f"ratio{end}": round(float(ratio), 3) for end, ratio in zip(("", "_low", "_high"), ratios, strict=True)}
