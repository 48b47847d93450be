"""The named settings: which songs, which encoder, which recipe. Values only, no logic beyond looking one up."""

import os
from dataclasses import dataclass, replace

from lyric_utils.songs import LyricsError


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained; saved with every checkpoint.

    Attributes:
        model: "baseline" (MLP on frozen embeddings), "lora" (adapters and head), "full" (the top layers themselves and
            head) or "blend" (a LoRA regressor averaged with ridge regression on words and form).
        pooling: how an encoder output of shape (n_tokens, hidden) becomes one vector: "cls", "mean" or "distinct"
            (the mean in which every distinct token counts once), see `lyric_utils.encoders.pool`.
        adapted_layers: top layers of the encoder that carry adapters or are trained; the others stay frozen.
        pooled_layers: how many of the last layers are averaged before pooling; the last alone with "cls".
        rank, alpha: of the adapters; the update is scaled by alpha / rank (Hu et al. 2021, LoRA).
        adapter_dropout: share of an adapter's inputs set to zero in training.
        loss_on: "song" compares the mean over a song's chunks with its valence, "chunk" every chunk.
        start: the untrained model: "random", "mean" (the training songs' constant mean) or "kernel" (kernel ridge
            regression on the pooled vectors, see `FineTunedRegressor.start_at_kernel`).
        soft_targets: share of two teachers' predictions in the training targets, see `lyric_utils.models.soft_targets`.
        epochs, batch_songs: passes over the training songs, and songs in one optimizer step.
        learning_rate: of the adapters, or of the whole baseline; `head_learning_rate`: of the head.
        weight_decay: of AdamW, decoupled from the learning rate's gradient step (Loshchilov & Hutter 2019).
        warmup: share of all steps over which the learning rates rise from zero; "constant" after that or,
            with `schedule="linear"`, falling to zero at the last step.
        words_share: weight of that ridge regression in a blend, 0 to 1, see `lyric_utils.models.text_ridge`.
        stretch: how far the scores of a blend are moved away from the training songs' mean valence.
    """

    model: str
    pooling: str = "cls"
    pooled_layers: int = 1
    adapted_layers: int = 4
    rank: int = 4
    alpha: int = 8
    adapter_dropout: float = 0.0
    loss_on: str = "song"
    start: str = "random"
    soft_targets: float = 0.0
    epochs: int = 20
    batch_songs: int = 32
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: str = "constant"
    words_share: float = 0.0
    stretch: float = 1.0


@dataclass(frozen=True)
class Profile:
    """One way to walk the road: songs, encoder, chunking, split and recipes.

    Attributes:
        source: "sample", "subset" or "kaggle", see `lyric_utils.sources.load_source`.
        songs: how many songs of the source are drawn at random (None: all).
        fractions, split_by: see `lyric_utils.songs.split_songs`.
        checkpoints: folder, relative to the repository, of this profile's checkpoints.
        recipes: checkpoint name -> recipe.
    """

    name: str
    source: str
    songs: int | None
    encoder: str
    fractions: tuple[float, float, float]
    split_by: str
    checkpoints: str
    recipes: dict[str, Recipe]
    max_length: int = 512
    stride: int = 128
    seed: int = 42


BASELINE = Recipe(model="baseline")
LORA_PAPER = Recipe(model="lora", loss_on="chunk", learning_rate=2e-5, head_learning_rate=2e-5, weight_decay=0.01)
LORA_TUNED = Recipe(
    model="lora",
    pooling="distinct",
    pooled_layers=4,
    rank=8,
    alpha=16,
    adapter_dropout=0.1,
    start="kernel",
    soft_targets=0.7,
    epochs=1,
    learning_rate=4e-4,
    head_learning_rate=1e-4,
    weight_decay=0.01,
    warmup=0.1,
    schedule="linear",
)
BLEND = replace(LORA_TUNED, model="blend", words_share=0.5, stretch=1.15)
FULL = replace(LORA_TUNED, model="full", adapted_layers=6, learning_rate=2e-5)

PROFILES = {
    "sample": Profile(
        name="sample",
        source="sample",
        songs=None,
        encoder="minilm",
        fractions=(0.8, 0.1, 0.1),
        split_by="stored",
        checkpoints="trained_models/sample",
        recipes={
            "baseline": BASELINE,
            "lora": replace(LORA_TUNED, epochs=2, batch_songs=4, learning_rate=1e-3, head_learning_rate=1e-3),
        },
    ),
    "subset": Profile(
        name="subset",
        source="subset",
        songs=None,
        encoder="minilm",
        fractions=(0.7, 0.1, 0.2),
        split_by="artist",
        checkpoints="trained_models",
        recipes={"baseline": BASELINE, "lora": LORA_TUNED, "lora_paper": LORA_PAPER, "full": FULL},
    ),
    "paper": Profile(
        name="paper",
        source="kaggle",
        songs=30_000,
        encoder="bert-base-uncased",
        fractions=(0.8, 0.1, 0.1),
        split_by="song",
        checkpoints="trained_models/paper",
        recipes={"baseline": BASELINE, "lora": LORA_PAPER},
    ),
}


def load_profile(name: str | None = None) -> Profile:
    """The profile of that name, or of the environment variable `LYRICS_PROFILE`, or "sample".

    The variable `LYRICS_EPOCHS`, where set, replaces the number of epochs of every recipe.

    Raises:
        LyricsError: there is no profile of that name, or the number of epochs is not a whole number above 0.
    """
    name = name or os.environ.get("LYRICS_PROFILE") or "sample"
    if name not in PROFILES:
        raise LyricsError(f"{name!r} is not a profile: use one of {', '.join(PROFILES)}.")
    profile, epochs = PROFILES[name], os.environ.get("LYRICS_EPOCHS")
    if not epochs:
        return profile
    if not epochs.isdecimal() or int(epochs) == 0:
        raise LyricsError(f"LYRICS_EPOCHS={epochs!r} is not a whole number above 0.")
    recipes = {name: replace(recipe, epochs=int(epochs)) for name, recipe in profile.recipes.items()}
    return replace(profile, recipes=recipes)
