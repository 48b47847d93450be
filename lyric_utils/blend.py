"""The mean of two fitted models: LoRA, which reads meaning, and ridge regression on character n-grams and structure."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from sklearn.pipeline import Pipeline

from lyric_utils.chunking import list_of_texts
from lyric_utils.classical import char_tfidf_ridge
from lyric_utils.models import LoraRegressor
from lyric_utils.profiles import Recipe


def blend_predictions(encoded: np.ndarray, text: np.ndarray, mean_valence: float, recipe: Recipe) -> np.ndarray:
    """The weighted mean of two models' predictions, moved away from the mean valence: (n_songs,), each in [0, 1].

    Where two models disagree their mean stays in the middle, so it varies less than either of them; `recipe.rescale`
    makes up for that. Source: Breiman 1996, "Stacked Regressions".

    Args:
        encoded: predictions of the fine-tuned encoder, (n_songs,).
        text: predictions of the ridge regression on the text, (n_songs,).
        mean_valence: of the training songs.
    """
    mean = (1 - recipe.text_weight) * encoded + recipe.text_weight * text.clip(0, 1)
    return (mean_valence + recipe.rescale * (mean - mean_valence)).clip(0, 1)


class BlendRegressor:
    """A fitted LoRA regressor and a fitted `char_tfidf_ridge`, whose predictions are blended.

    Args:
        mean_valence: of the training songs.
        recipe: has the `text_weight` and `rescale` of the blend.
    """

    def __init__(self, encoder_model: LoraRegressor, text_model: Pipeline, mean_valence: float, recipe: Recipe):
        self.encoder_model, self.text_model = encoder_model.eval(), text_model
        self.mean_valence, self.recipe = mean_valence, recipe
        for name in ("encoder", "seed", "adapter_config", "max_length", "stride"):
            setattr(self, name, getattr(encoder_model, name))

    def predict(self, lyrics: Iterable[str]) -> np.ndarray:
        """Valence of each song, see `SongRegressor.predict`."""
        lyrics = list_of_texts(lyrics)
        if not lyrics:
            return np.zeros(0)
        text = self.text_model.predict(lyrics)
        return blend_predictions(self.encoder_model.predict(lyrics), text, self.mean_valence, self.recipe)

    @property
    def n_ngrams(self) -> int:
        return len(_fitted_parts(self.text_model)[0].get_feature_names_out())

    def trainable_parameters(self) -> dict[str, torch.Tensor]:
        return self.encoder_model.trainable_parameters()

    def state_files(self) -> dict[str, dict[str, torch.Tensor]]:
        ngrams, scaler, ridge = _fitted_parts(self.text_model)
        vocabulary = "\n".join(ngrams.get_feature_names_out()).encode()
        words = {
            "vocabulary": torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8),  # UTF-8, one per line
            "idf": torch.from_numpy(ngrams.idf_),
            "form_mean": torch.from_numpy(scaler.mean_),
            "form_scale": torch.from_numpy(scaler.scale_),
            "coefficients": torch.from_numpy(ridge.coef_),
            "intercept": torch.tensor([ridge.intercept_], dtype=torch.float64),
            "mean_valence": torch.tensor([self.mean_valence], dtype=torch.float64),
        }
        return self.encoder_model.state_files() | {"words.safetensors": words}

    @classmethod
    def from_state_files(cls, encoder_model: LoraRegressor, recipe: Recipe, files: dict) -> "BlendRegressor":
        """The blend that `state_files` wrote; `encoder_model` is untrained."""
        encoder_model.load_state_files(files)
        words = files["words.safetensors"]
        text_model = char_tfidf_ridge(vocabulary=bytes(words["vocabulary"].tolist()).decode().split("\n"))
        ngrams, scaler, ridge = _fitted_parts(text_model)
        ngrams.idf_ = words["idf"].numpy()
        scaler.mean_, scaler.scale_ = words["form_mean"].numpy(), words["form_scale"].numpy()
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
