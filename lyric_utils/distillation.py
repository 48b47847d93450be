"""What a fine-tuned encoder learns from simple models: softer targets, and a head that starts where they end."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline
from torch import nn

from lyric_utils._files import LyricsError
from lyric_utils._progress import progress
from lyric_utils.classical import char_tfidf_ridge, nystroem_ridge
from lyric_utils.models import FineTunedRegressor

Teachers = tuple[Callable[[], Pipeline], Callable[[int, int], Pipeline]]
TEACHERS: Teachers = (char_tfidf_ridge, nystroem_ridge)  # one reads lyrics, one frozen vectors
INIT_STEPS, BATCH = 1_000, 256  # in which a head learns to predict as kernel ridge regression


def soft_targets(songs: pd.DataFrame, vectors: np.ndarray, weight: float, teachers: Teachers = TEACHERS) -> np.ndarray:
    """Training targets: each song's valence, moved by `weight` (0 to 1) towards what two teachers predict for it.

    The mean of the two teachers predicts each song from the songs of other artists (five folds). A label that the words
    do not support is thus softened, and a network learns less of the noise. vectors: the frozen encoder's, (n_songs,
    hidden). Raises `LyricsError` if there are too few songs or artists. Sources: Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network"; for noisy labels Li et al. 2017, "Learning from Noisy Labels with Distillation".
    """
    lyrics, valence = songs["lyrics"].to_numpy(), songs["valence"].to_numpy()
    if weight == 0:
        return valence
    make_text_model, make_vector_model = teachers
    predicted, artists = np.empty(len(songs)), songs["artist"].nunique()
    try:
        splits = GroupKFold(min(5, artists)).split(lyrics, groups=songs["artist"])
        for others, held in progress([*splits], desc="soft targets", unit="fold", delay=1):
            text_model = make_text_model().fit(lyrics[others], valence[others])
            vector_model = make_vector_model(*vectors[others].shape).fit(vectors[others], valence[others])
            predicted[held] = (text_model.predict(lyrics[held]) + vector_model.predict(vectors[held])) / 2
    except ValueError as error:
        found = f"{len(songs)} songs of {artists} artists ({error}): give more songs, or use distillation_weight=0"
        raise LyricsError(f"soft targets cannot be learned from {found}.") from error
    return (1 - weight) * valence + weight * predicted


def initialise_head(model: FineTunedRegressor, vectors: np.ndarray, valence: np.ndarray) -> None:
    """Let the head of an untrained model predict nearly as `nystroem_ridge` on its pooled song vectors.

    vectors, (n_songs, hidden), and valence, (n_songs,), are those of the training songs. The head learns the kernel's
    answers to mixtures of two songs each, so that it is as nonlinear between songs as the kernel. Sources: Kumar et al.
    2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"; Hinton et al. 2015; Zhang
    et al. 2018, "mixup: Beyond Empirical Risk Minimization".
    """
    varying, scaler, nystroem, ridge = nystroem_ridge(*vectors.shape).fit(vectors, valence)
    mean, scale = varying.inverse_transform([scaler.mean_, scaler.scale_])
    scale[scale == 0] = np.inf  # dimensions that were left out get no weight
    as_tensor = model.output_layer.weight.new_tensor
    scaled, dual = as_tensor((vectors - mean) / scale), as_tensor(nystroem.normalization_.T @ ridge.coef_)
    known = scaled[nystroem.component_indices_]
    model.start_at(valence.mean())
    optimizer = torch.optim.Adam(model.head.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1, end_factor=0, total_iters=INIT_STEPS)
    hidden, draw = model.head.layers[0], np.random.default_rng(42)
    for _ in progress(range(INIT_STEPS), desc="initialise head", unit="step", delay=1):
        first, second = draw.integers(len(scaled), size=(2, BATCH))
        angle = as_tensor(draw.beta(0.4, 0.4, size=(BATCH, 1)) * np.pi / 2)  # mostly one prevails; the variance is kept
        mixtures = angle.cos() * scaled[first] + angle.sin() * scaled[second]
        answers = torch.exp(-nystroem.gamma * torch.cdist(mixtures, known) ** 2) @ dual + ridge.intercept_
        nn.functional.mse_loss(model.head(mixtures), answers).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():  # from scaled vectors, which it learned on, to vectors as they come
        hidden.weight /= as_tensor(scale)
        hidden.bias -= hidden.weight @ as_tensor(mean)
