"""Draw every figure of the README from the saved files: python assets/draw_figures.py (no lyrics are needed)."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

import lyric_utils as lu
from lyric_utils import plots

ASSETS = Path(__file__).parent
MODELS = ASSETS.parent / "trained_models"
SHIPPED = {"baseline": "baseline", "LoRA": "lora"}


def save(ax, name: str) -> None:
    """Write one figure as PNG, the same bytes on the same machine."""
    ax.figure.savefig(ASSETS / f"{name}.png", metadata={"Software": None})


def main() -> None:
    """Diagrams of the two models, and the results of the shipped checkpoints."""
    plots.use_style()
    save(plots.model_diagram(layers=6, adapted=4, hidden=384), "model")
    save(plots.baseline_diagram(layers=6, hidden=384), "baseline")
    results = {name: lu.load_results(MODELS / folder) for name, folder in SHIPPED.items()}
    tables = {name: result.predictions for name, result in results.items()}
    mse = {
        name: lu.score_with_intervals(table["valence"], table["prediction"], table["artist"]).loc["mse"]
        for name, table in tables.items()
    }
    variance = float(np.var(tables["LoRA"]["valence"]))
    save(plots.metric_bars(pd.DataFrame(mse).T, "mse", reference={"variance of the labels": variance}), "results")
    lora = tables["LoRA"]
    r2 = results["LoRA"].metrics["r2"]
    save(plots.truth_against_prediction(lora["valence"], lora["prediction"], "LoRA", r2), "truth_against_prediction")


if __name__ == "__main__":
    main()
