"""Draw the figures of README.md and RESULTS.md from saved files, without lyrics: python assets/draw_figures.py"""

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Line

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, which is not installed
from benchmarks.quality import comparison
from benchmarks.quality.methods import METHODS
from lyric_utils import plots
from lyric_utils.evaluation import score

ASSETS = Path(__file__).resolve().parent
TWO_TABLES = [METHODS[name].label for name in ("lora", "blend")]
IN_README = [METHODS[name].label for name in ("constant", "baseline", "word_tfidf_ridge", "lora_paper", "lora")]
BOX_STYLES = {
    "data": {"facecolor": "#F0F0F0", "edgecolor": plots.GREY},
    "frozen": {"facecolor": "#D3E6F3", "edgecolor": plots.BLUE},
    "trained": {"facecolor": "#FCE5BC", "edgecolor": plots.ORANGE},
}
BOX_HEIGHT, ROW_HEIGHT = 13, 17.8
# The two models with MiniLM, of 6 layers x 384: rows of (title, text, kind) boxes.
READING = [
    ("Lyrics", "of one song", "data"),
    ("Tokenizer", "words to\ntoken IDs", "data"),
    ("Chunks", "≤ 512 tokens,\nstride 128\n(overlap)", "data"),
]
VALENCE = ("Valence", "0 = sad,\n1 = happy", "data")
MEAN = ("Mean", "over the chunks\nof a song", "data")
MODEL = [
    [
        *READING,
        ("Layers 1–2", "❄ frozen, run\nonce and cached", "frozen"),
        ("Layers 3–6", "LoRA on\nquery and value", "adapted"),
    ],
    [
        ("Pooling", "one 384-d vector\nper chunk", "data"),
        ("Head", "Linear 384 → 128\nReLU\nLinear 128 → 1", "trained"),
        ("Chunk scores", "one number\nper chunk", "data"),
        MEAN,
        VALENCE,
    ],
]
BASELINE = [
    [*READING, ("Layers 1–6", "❄ frozen, run\nonce and cached", "frozen")],
    [
        ("[CLS] vectors", "one 384-d vector\nper chunk", "data"),
        MEAN,
        ("MLP", "384 → 256\n→ 128 → 1", "trained"),
        VALENCE,
    ],
]


def main() -> None:
    """Draw the diagrams of the two models, and the results."""
    plots.use_style()
    save(draw_diagram(MODEL), "model")
    save(draw_diagram(BASELINE), "baseline")
    own, both = (comparison.load_comparison(trained_on=name) for name in ("billboard", "both"))
    table, more = (comparison.compare(measured)["mse"] for measured in (own, both))
    more = more[more.index.isin(TWO_TABLES)].rename(index="{}, both tables".format)
    save(plots.metric_bars(pd.concat([table, more])), "results_all")
    save(plots.metric_bars(pd.concat([table[table.index.isin(IN_README)], more])), "results")
    blend, truth = METHODS["blend"].label, both.truth
    prediction = both.predictions[blend][0]  # of one seed, and so is the R2 in the title
    r2 = score(truth, prediction)["r2"]
    save(plots.truth_against_prediction(truth, prediction, blend, r2), "truth_against_prediction")


def save(ax: Axes, name: str) -> None:
    """Write one figure as PNG, the same bytes on the same machine."""
    ax.figure.savefig(ASSETS / f"{name}.png", metadata={"Software": None})


def draw_diagram(rows: list[list[tuple[str, str, str]]]) -> Axes:
    """Draw rows of (title, text, kind) boxes, read from left to right, and the legend, on a 100 x 38 canvas."""
    ax = plt.subplots(figsize=(10, 3.8))[1]
    ax.set(xlim=(0, 100), ylim=(0, 38), aspect="equal")
    ax.axis("off")
    width = 80 / len(rows[0])
    lefts = np.linspace(1, 99 - width, len(rows[0]))
    bottoms = [38 - 0.5 - BOX_HEIGHT - row * ROW_HEIGHT for row in range(len(rows))]
    for bottom, boxes in zip(bottoms, rows, strict=True):
        for left, box in zip(lefts, boxes, strict=True):
            draw_box(ax, left, bottom, width, *box)
        for left, next_left in pairwise(lefts):
            draw_arrow(ax, [(left + width, bottom + BOX_HEIGHT / 2), (next_left, bottom + BOX_HEIGHT / 2)])
    for bottom, next_bottom in pairwise(bottoms):
        start, end = lefts[-1] + width / 2, lefts[0] + width / 2
        middle = (bottom + next_bottom + BOX_HEIGHT) / 2
        draw_arrow(ax, [(start, bottom), (start, middle), (end, middle), (end, next_bottom + BOX_HEIGHT)])
    names = {"data": "data and fixed steps", "frozen": "frozen parameters", "trained": "trained parameters"}
    handles = [Patch(**BOX_STYLES[kind], label=name) for kind, name in names.items()]
    ax.legend(handles=handles, loc="lower center", ncols=3, borderaxespad=0)
    return ax


def draw_box(ax: Axes, left: float, bottom: float, width: float, title: str, text: str, kind: str) -> None:
    """A box with a bold title; an adapted box is frozen, with its text on a trained plate."""
    draw_plate(ax, left, bottom, width, BOX_HEIGHT, "frozen" if kind == "adapted" else kind)
    if kind == "adapted":
        draw_plate(ax, left + 1, bottom + 1, width - 2, BOX_HEIGHT * 0.56, "trained")
    middle = left + width / 2
    ax.text(middle, bottom + BOX_HEIGHT * 0.81, title, ha="center", va="center", fontsize=12.5, fontweight="bold")
    ax.text(middle, bottom + BOX_HEIGHT * 0.36, text, ha="center", va="center", fontsize=10.5, linespacing=1.25)


def draw_plate(ax: Axes, left: float, bottom: float, width: float, height: float, kind: str) -> None:
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=1", linewidth=1.5)
    shape.set(**BOX_STYLES[kind])
    ax.add_patch(shape)


def draw_arrow(ax: Axes, points: list[tuple[float, float]]) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.5, "color": "#404040"}
    ax.add_patch(FancyArrowPatch(path=Line(points), **style))


if __name__ == "__main__":
    main()
