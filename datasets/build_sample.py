"""Build `sample_150.pkl` from its readable source, and draw the figure of the data card.

The source, `sample_150.jsonl`, holds one song per line. To change a song, edit it there and run
`python datasets/build_sample.py`.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import lyric_utils as lu
from lyric_utils import plots
from lyric_utils._files import replacing

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "sample_150.jsonl"
PICKLE = HERE / "sample_150.pkl"
FIGURE = HERE.parent / "assets" / "sample_150.png"


def read_source() -> pd.DataFrame:
    """The songs as written, one a line of `sample_150.jsonl`."""
    with open(SOURCE, encoding="utf-8") as lines:
        return pd.DataFrame(map(json.loads, lines))


def draw_figure(songs: pd.DataFrame, path: Path) -> None:
    """Draw valence, words, chunks and genres of the songs; the same bytes for the same songs and Matplotlib."""
    plots.use_style()
    layout = [["valence", "genres"], ["words", "genres"], ["chunks", "genres"]]
    figure, axes = plt.subplot_mosaic(layout, figsize=(10, 9))
    plots.valence_histogram(songs["valence"], axes["valence"])
    plots.length_histogram(songs["lyrics"].str.split().str.len(), axes["words"])
    chunks = lu.chunk_lyrics(songs["lyrics"].tolist(), lu.load_encoder().tokenizer)
    plots.chunk_histogram(chunks.per_song, axes["chunks"])
    draw_genres(songs, axes["genres"])
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)


def draw_genres(songs: pd.DataFrame, ax: plt.Axes) -> None:
    """One row per genre, the most frequent on top, and one dot per song at its valence."""
    counts = songs["genre"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    rows = songs["genre"].map({genre: row for row, genre in enumerate(counts.index)})
    ax.scatter(songs["valence"], rows, s=45, alpha=0.6, color=plots.BLUE, edgecolors="none")
    ax.set_yticks(range(len(counts)), [f"{genre} ({count})" for genre, count in counts.items()])
    ax.set(xlabel="valence (one dot per song)", xlim=(-0.02, 1.02))
    ax.invert_yaxis()


if __name__ == "__main__":
    sample = read_source()
    lu.save_songs(sample, PICKLE)
    draw_figure(sample, FIGURE)
    print(f"{len(sample)} songs -> {PICKLE.name}, {FIGURE.name}")
