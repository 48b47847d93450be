"""The mean of two fitted models: LoRA, which reads meaning, and ridge regression on character n-grams and structure."""

import numpy as np
import pandas as pd
import torch
from sklearn.pipeline import Pipeline

from lyric_utils._checks import check_tensors
from lyric_utils.classical import char_tfidf_ridge
from lyric_utils.models import LoraRegressor, Predictor
from lyric_utils.profiles import Recipe

TEXT_FILE = "words.safetensors"  # of a checkpoint: what the ridge regression has learned


def blend_predictions(encoded: np.ndarray, text: np.ndarray, mean_valence: float, recipe: Recipe) -> np.ndarray:
    """The weighted mean of two models' predictions, moved away from the mean valence: (n_songs,), each in [0, 1].

    encoded, text: predictions of the fine-tuned encoder and of the ridge regression on the text, (n_songs,) each. Where
    they disagree their mean stays in the middle, so it varies less than either of them; `recipe.rescale` makes up for
    that. mean_valence: of the training songs. Source: Breiman 1996, "Stacked Regressions".
    """
    mean = (1 - recipe.text_weight) * encoded + recipe.text_weight * text.clip(0, 1)
    return (mean_valence + recipe.rescale * (mean - mean_valence)).clip(0, 1)


class BlendRegressor(Predictor):
    """A fitted LoRA regressor and a fitted `char_tfidf_ridge`, blended by `blend_predictions`."""

    def __init__(self, encoder_model: LoraRegressor, text_model: Pipeline, mean_valence: float, recipe: Recipe):
        self.encoder_model, self.text_model = encoder_model.eval(), text_model
        self.mean_valence, self.recipe = mean_valence, recipe
        for name in ("encoder", "seed", "adapter_config", "max_length", "stride", "trainable_parameters"):
            setattr(self, name, getattr(encoder_model, name))
        self.n_ngrams = len(_fitted_parts(text_model)[0].get_feature_names_out())

    def score_lyrics(self, lyrics: list[str]) -> np.ndarray:
        text = self.text_model.predict(lyrics)
        return blend_predictions(self.encoder_model.score_lyrics(lyrics), text, self.mean_valence, self.recipe)

    def state_files(self) -> dict[str, dict[str, torch.Tensor]]:
        ngrams, scaler, ridge = _fitted_parts(self.text_model)
        arrays = {"idf": ngrams.idf_, "form_mean": scaler.mean_, "form_scale": scaler.scale_}
        arrays |= {"coefficients": ridge.coef_, "intercept": [ridge.intercept_], "mean_valence": [self.mean_valence]}
        words = {name: torch.tensor(values, dtype=torch.float64) for name, values in arrays.items()}
        vocabulary = "\n".join(ngrams.get_feature_names_out()).encode()
        words["vocabulary"] = torch.tensor(list(vocabulary), dtype=torch.uint8)
        return self.encoder_model.state_files() | {TEXT_FILE: words}

    @classmethod
    def from_state(cls, encoder_model: LoraRegressor, recipe: Recipe, words: dict) -> "BlendRegressor":
        """The blend of a fitted LoRA regressor and the content of a `TEXT_FILE`; raises an error if it is damaged."""
        vocabulary = bytes(words["vocabulary"].tolist()).decode().split("\n")
        count, sizes = len(vocabulary), {"form_mean": 4, "form_scale": 4, "intercept": 1, "mean_valence": 1}
        sizes |= {"idf": count, "coefficients": count + 4}
        expected = {name: torch.empty(size, dtype=torch.float64) for name, size in sizes.items()}
        check_tensors(words, expected | {"vocabulary": torch.empty(words["vocabulary"].shape, dtype=torch.uint8)})
        least = {"idf": 1, "form_scale": 1e-6, "mean_valence": 0}
        if len({*vocabulary}) < count or words["mean_valence"] > 1 or any(words[n].min() < least[n] for n in least):
            raise ValueError(f"{TEXT_FILE}: an n-gram stands twice, or a value is out of range")
        text_model = char_tfidf_ridge(vocabulary=vocabulary)
        ngrams, scaler, ridge = _fitted_parts(text_model)
        ngrams.idf_, scaler.mean_, scaler.scale_ = (words[name].numpy() for name in ("idf", "form_mean", "form_scale"))
        ridge.coef_, ridge.intercept_ = words["coefficients"].numpy(), words["intercept"].item()
        return cls(encoder_model, text_model, words["mean_valence"].item(), recipe)


def fit_blend(lora: LoraRegressor, songs: pd.DataFrame, recipe: Recipe) -> BlendRegressor:
    """Blend a fitted LoRA regressor with a ridge regression on the text, fitted here on the same training songs."""
    text_model = char_tfidf_ridge().fit(songs["lyrics"], songs["valence"])
    return BlendRegressor(lora, text_model, float(songs["valence"].mean()), recipe)


def _fitted_parts(text_model: Pipeline) -> tuple:
    """What a `char_tfidf_ridge` learns: n-grams, the scale of the structural features, coefficients."""
    (_, ngrams), (_, structure) = text_model[0].transformer_list
    return ngrams, structure["standardscaler"], text_model[-1]
