"""The named settings: which songs, which encoder, which recipe. Values only, no logic beyond looking one up."""

import os
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from lyric_utils._checks import Real, Seed, Share, Whole, checked
from lyric_utils._files import LyricsError

Count = Annotated[Whole, Field(ge=1, lt=2**31)]
Size = Annotated[Real, Field(ge=0)]
STRICT = ConfigDict(extra="forbid", revalidate_instances="always")  # for pydantic, see `_checks.validate`


@dataclass(frozen=True)
class Recipe:
    """How one model is built and trained; saved with every checkpoint."""

    __pydantic_config__ = STRICT
    model: Literal["baseline", "lora", "full", "blend"]  # "full" trains top layers, "blend" is LoRA and ridge on text
    pooling: Literal["cls", "mean", "distinct"] = "cls"  # how tokens become a vector, see `encoders.pool_tokens`
    pooled_layers: Count = 1  # of the last layers, averaged before pooling; 1 with "cls"
    adapted_layers: Count = 4  # top layers that carry adapters or are trained; the others stay frozen
    target_modules: tuple[str, ...] = ("query", "value")  # linear layers that carry adapters, by their names in BERT
    rank: Count = 4  # of the adapters, whose update is scaled by alpha / rank (Hu et al. 2021, LoRA)
    alpha: Annotated[Count, Field(le=1024)] = 8
    lora_dropout: Share = 0.0
    attention_dropout: Share = 0.0  # share of attention weights dropped in training
    loss_on: Literal["song", "chunk"] = "song"  # compares a song's mean with its valence, or every chunk
    init: Literal["random", "mean", "kernel"] = "random"  # of the head, see `distillation.initialise_head`
    distillation_weight: Share = 0.0  # share of two teachers in the targets, 0 to 1, see `distillation.soft_targets`
    epochs: Count = 20
    batch_songs: Count = 32  # songs per optimizer step
    learning_rate: Size = 1e-3  # of the adapters, or of the whole baseline
    head_learning_rate: Size = 1e-3
    weight_decay: Size = 0.0  # of AdamW (Loshchilov & Hutter 2019)
    warmup: Share = 0.0  # share of all steps over which the learning rates rise from zero
    schedule: Literal["constant", "linear"] = "constant"  # after the warm-up; "linear": falls to zero at the last step
    text_weight: Share = 0.0  # of the ridge regression in a blend, 0 to 1, see `blend.blend_predictions`
    rescale: Annotated[Real, Field(gt=0, le=10)] = 1.0  # moves a blend's scores away from the mean valence


@dataclass(frozen=True)
class Profile:
    """One way through the pipeline: songs, encoder, chunking, split and recipes."""

    __pydantic_config__ = STRICT
    name: str
    source: Literal["sample", "billboard", "subset", "kaggle"]  # see `sources.load_source`
    songs: Count | None  # how many songs of the source are drawn at random; None: all
    encoder: str
    fractions: tuple[Share, Share, Share]  # of train, validation and test, see `songs.split_songs`
    split_by: str
    recipes: dict[str, Recipe]  # by the name of their checkpoint
    max_length: Whole = 512
    stride: Whole = 128
    seed: Seed = 42
    also: Literal["subset"] | None = None  # a second source of training songs, see `pipeline.add_songs`


BASELINE = Recipe(model="baseline")
LORA_PAPER = Recipe(model="lora", loss_on="chunk", learning_rate=2e-5, head_learning_rate=2e-5, weight_decay=0.01)
LORA_TUNED = Recipe(model="lora", pooling="distinct", pooled_layers=4, rank=8, alpha=16, lora_dropout=0.1,
                    init="kernel", distillation_weight=0.7, epochs=1, learning_rate=4e-4, head_learning_rate=1e-4,
                    weight_decay=0.01, warmup=0.1, schedule="linear")  # fmt: skip
LORA_SAMPLE = replace(LORA_TUNED, epochs=2, batch_songs=4, learning_rate=1e-3, head_learning_rate=1e-3)
BLEND = replace(LORA_TUNED, model="blend", text_weight=0.5, rescale=1.15)
FULL = replace(LORA_TUNED, model="full", adapted_layers=6, learning_rate=2e-5)
RECIPES = {"baseline": BASELINE, "lora": LORA_TUNED, "lora_paper": LORA_PAPER, "full": FULL, "blend": BLEND}

PROFILES = {
    "sample": Profile("sample", source="sample", songs=None, encoder="minilm", fractions=(0.8, 0.1, 0.1),
                      split_by="stored", recipes={"baseline": BASELINE, "lora": LORA_SAMPLE}),
    "billboard": Profile("billboard", source="billboard", songs=None, encoder="minilm", fractions=(0.7, 0.1, 0.2),
                         split_by="artist", recipes=RECIPES),
    "both": Profile("both", source="billboard", songs=None, encoder="minilm", fractions=(0.7, 0.1, 0.2),
                    split_by="artist", recipes=RECIPES, also="subset"),
    "subset": Profile("subset", source="subset", songs=None, encoder="minilm", fractions=(0.7, 0.1, 0.2),
                      split_by="artist", recipes=RECIPES),
    "paper": Profile("paper", source="kaggle", songs=30_000, encoder="bert-base-uncased", fractions=(0.8, 0.1, 0.1),
                     split_by="song", recipes={"baseline": BASELINE, "lora": LORA_PAPER}),
}  # fmt: skip


@checked
def load_profile(name: str | None = None) -> Profile:
    """The profile of that name, or of the environment variable `LYRICS_PROFILE`, or "sample".

    The variable `LYRICS_EPOCHS`, where set, replaces the number of epochs of every recipe. Raises `LyricsError` if
    there is no such profile, or that is not a whole number above 0.
    """
    name = name or os.environ.get("LYRICS_PROFILE") or "sample"
    if name not in PROFILES:
        raise LyricsError(f"{name!r} is not a profile: use one of {', '.join(PROFILES)}.")
    profile, epochs = PROFILES[name], os.environ.get("LYRICS_EPOCHS")
    if epochs and (not epochs.isdecimal() or int(epochs) == 0):
        raise LyricsError(f"LYRICS_EPOCHS={epochs!r} is not a whole number above 0.")
    changes = {"epochs": int(epochs)} if epochs else {}
    return replace(profile, recipes={name: replace(recipe, **changes) for name, recipe in profile.recipes.items()})
