"""The pipeline from a table on disk to chunks, at the size of the full Kaggle table.

`python -m benchmarks.robustness.full_table [ROWS ...]` makes tables of 10,000, 40,000 and 158,353 synthetic songs,
reads, cleans, splits and chunks each in a process of its own, and prints seconds, CPU seconds of all threads and peak
memory of each step; without ROWS, they go to results/full_table.json. Goals on two cores: 5 minutes, 2 GiB.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

import lyric_utils as lu
from benchmarks.common import ROBUSTNESS, song_tokens, synthetic_songs, write_json
from benchmarks.speed.memory import peak_memory

SIZES = (10_000, 40_000, 158_353)
FOREIGN = [
    "wir gehen heute abend durch die stadt und niemand weiß wohin der weg uns führen wird wenn der regen fällt",
    "je ne sais pas pourquoi tu es partie sans me dire un mot et la nuit est si longue sans ta voix mon amour",
    "no sé por qué te fuiste sin decirme nada y la noche es tan larga cuando no estás conmigo mi corazón",
]


def write_table(path: Path, rows: int) -> None:
    """Write a table in the Kaggle schema; 4 of 100 rows repeat an earlier one's words, 4 are foreign or unusable."""
    draw, songs = np.random.default_rng(0), synthetic_songs(song_tokens(rows), lu.load_encoder("minilm").tokenizer)
    songs["artist"] = [f"Artist {number}" for number in draw.integers(rows // 8, size=rows)]
    songs["valence"] = songs["valence"].round(3).astype(object)
    unusable = [("lyrics", ""), ("lyrics", "... ! 12"), ("valence", ""), ("valence", "nan"), ("valence", 7)]
    kind = draw.random(rows)
    for row in np.flatnonzero(kind < 0.08):
        if kind[row] < 0.04:
            songs.loc[row, "lyrics"] = songs.loc[draw.integers(row + 1), "lyrics"].upper()
        elif kind[row] < 0.06:
            songs.loc[row, "lyrics"] = " ".join(draw.permutation(FOREIGN[row % 3].split()))
        else:
            songs.loc[row, unusable[row % 5][0]] = unusable[row % 5][1]
    songs = songs.rename(columns={"row": "", "lyrics": "seq", "title": "song", "valence": "label"})
    songs.to_csv(path, index=False)


def measure(path: Path) -> list[dict]:
    """Go through the pipeline once; one dict per step."""
    tokenizer = lu.load_encoder("minilm").tokenizer
    steps = [{"step": "start", "rows": 0, "seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": round(peak_memory())}]

    def step(name, rows, work):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here
        started, used = time.perf_counter(), time.process_time()
        result = work()
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used}
        steps.append({"step": name, "rows": rows or len(result), **seconds, "peak_mib": round(peak_memory())})
        return result

    table = step("read", None, lambda: lu.read_songs(path))
    songs, report = step("clean", len(table), lambda: lu.clean_songs(table))
    assert report.rows_in == report.rows_kept + len(report.dropped)
    print(report, file=sys.stderr)
    split = step("split", len(songs), lambda: lu.split_songs(songs))
    step("chunk", len(songs), lambda: [lu.chunk_lyrics(side["lyrics"], tokenizer) for side in split])
    return steps


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, sys.argv[1:] or SIZES):
            path = Path(folder, f"{rows}.csv")
            write_table(path, rows)
            command = [sys.executable, "-m", "benchmarks.robustness.full_table", "--measure", path]
            steps = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            reduce = {"seconds": sum, "cpu_seconds": sum, "peak_mib": max}
            total = {key: function(step[key] for step in steps) for key, function in reduce.items()}
            steps.append({"step": "all", "rows": rows, **total})
            results.append({"rows": rows, "mib_on_disk": path.stat().st_size >> 20, "steps": steps})
            print(pd.DataFrame(steps).round(1).to_string(index=False), flush=True)
    if not sys.argv[1:]:
        write_json(ROBUSTNESS / "full_table.json", results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        main()
