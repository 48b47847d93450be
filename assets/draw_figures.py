"""Draw every figure of the README from the saved files: python assets/draw_figures.py (no lyrics are needed)."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import lyric_utils as lu
from lyric_utils import plots
from lyric_utils.comparison import MEASURED, METHODS
from lyric_utils.evaluation import Interval

ASSETS = Path(__file__).parent


def save(ax, name: str) -> None:
    """Write one figure as PNG, the same bytes on the same machine."""
    ax.figure.savefig(ASSETS / f"{name}.png", metadata={"Software": None})


def main() -> None:
    """Diagrams of the two models, and the results of the shipped checkpoints."""
    plots.use_style()
    save(plots.model_diagram(layers=6, adapted=4, hidden=384), "model")
    save(plots.baseline_diagram(layers=6, hidden=384), "baseline")
    real, analyses = lu.load_comparison(), json.loads((MEASURED / "analyses.json").read_text())
    table, ceiling = lu.compare(real), Interval(**analyses["noise_ceiling"])
    least = {"least possible": (1 - ceiling.value) * float(np.var(real.truth))}
    save(plots.metric_bars(table["mse"], "mse", reference=least), "results")
    r2 = table.loc["LoRA + TF-IDF, form", ("r2", "value")]
    best = real.predictions["LoRA + TF-IDF, form"][0]
    save(plots.truth_against_prediction(real.truth, best, "LoRA + TF-IDF, form", r2), "truth_against_prediction")
    draw_learning_curve(ceiling, analyses["extrapolated"])
    draw_moods(analyses["moods"]["4 moods"])


def draw_learning_curve(ceiling: Interval, extrapolated: dict) -> None:
    """R2 by training songs, for the two networks' family and the two floors."""
    curves = lu.load_curves()
    larger = {METHODS[stem]: pd.DataFrame(extrapolated[stem]).T.rename(index=int) for stem in ("lora", "blend")}
    save(plots.learning_curve(curves, larger, ceiling), "learning_curve")


def draw_moods(moods: dict) -> None:
    """Confusion of four mood classes, from the regression and from the classifier head."""
    _, axes = plt.subplots(1, 2, figsize=(11, 5))
    for ax, method in zip(axes, ("LoRA", "classifier head"), strict=True):
        plots.confusion(moods[method]["confusion"], ["below 0.25", "to 0.5", "to 0.75", "above"], ax=ax)
        ax.set_title(f"{method}: {moods[method]['accuracy']:.0%} right")
    save(axes[0], "moods")


if __name__ == "__main__":
    main()
