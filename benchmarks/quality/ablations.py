"""How the recipe was chosen: python -m benchmarks.quality.ablations [NAME ...]

Measured on the subset's songs in five folds by artist; the test songs play no part. What is read (words, pooling,
layers, blends) takes minutes for all folds. A change to LoRA is one training on one fold, to be read with care; most
change an earlier recipe, whose head started at ridge regression and whose teachers were word TF-IDF and one frozen
layer. Results go to results/ablations.json; what is there already is not run again. The stored ones were measured on
folds of an earlier split, of about as many songs.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModel

from benchmarks.common import read_json, write_json
from benchmarks.quality.methods import METHODS, RESULTS, Method, Problem, on_lyrics, on_vectors, problems
from lyric_utils.blend import blend_predictions
from lyric_utils.chunking import average_by_song
from lyric_utils.classical import char_tfidf_ridge, embedding_ridge, word_tfidf_ridge
from lyric_utils.encoders import Encoder, minilm_folder, pool_tokens, quiet_transformers
from lyric_utils.evaluation import score
from lyric_utils.models import LoraRegressor, score_songs
from lyric_utils.profiles import BLEND, LORA_TUNED, Recipe

FILE = RESULTS / "ablations.json"
FOLD_OF_LORA, DECAY = 1, 0.95  # the decay of the running average


def read_pooler(problem: Problem) -> np.ndarray:
    """Ridge regression on BERT's own pooler, as the reported regressor read it: a layer with tanh on top of [CLS]."""
    features = problem.features(4)
    with quiet_transformers():
        pooler = AutoModel.from_pretrained(minilm_folder()).pooler.dense
    states = features.cls @ pooler.weight.detach().numpy().T + pooler.bias.detach().numpy()
    return problem.fit(embedding_ridge(), average_by_song(np.tanh(states), features.song_index))


def read_both_in_one(problem: Problem) -> np.ndarray:
    """Word TF-IDF and vectors in one ridge regression, scaled so that both have about the same influence."""
    vectors, (words, ridge) = problem.features(4).pooled("distinct", 4), word_tfidf_ridge()
    parts = [("words", words, 0), ("vectors", StandardScaler(), slice(1, None))]
    both = make_pipeline(ColumnTransformer(parts, transformer_weights={"words": 1, "vectors": 0.01}), ridge)
    return problem.fit(both, np.column_stack([problem.songs["lyrics"].to_numpy(dtype=object), vectors.astype(object)]))


def blend(encoded: Callable, text: Callable, text_weight: float = 0.5) -> Callable[[Problem], np.ndarray]:
    """The weighted mean of two of these."""
    recipe = replace(BLEND, text_weight=text_weight, rescale=1)
    return lambda problem: blend_predictions(encoded(problem).clip(0, 1), text(problem), problem.mean_valence, recipe)


FITS = {name: method.fit for name, method in METHODS.items()}
WORDS, TEXT = FITS["word_tfidf_ridge"], FITS["char_structure_ridge"]
CHARACTERS = on_lyrics(partial(char_tfidf_ridge, structure=False))
THREE_LAYERS, FOUR_LAYERS = on_vectors("distinct", 3), on_vectors("distinct", 4)
READINGS: dict[str, Callable[[Problem], np.ndarray]] = {
    "constant mean": FITS["constant"],
    "word TF-IDF": WORDS,
    "word TF-IDF, pairs of words too": on_lyrics(
        lambda: word_tfidf_ridge().set_params(tfidfvectorizer__ngram_range=(1, 2))
    ),
    "character TF-IDF": CHARACTERS,
    "structural features alone: words, distinct words, words per line, share of distinct lines": on_lyrics(
        lambda: make_pipeline(char_tfidf_ridge()[0].transformer_list[1][1], RidgeCV())
    ),
    "character TF-IDF, structure": TEXT,
    "frozen encoder, [CLS]": on_vectors("cls"),
    "frozen encoder, mean of the last layer": FITS["embedding_ridge"],
    "frozen encoder, mean of the last three layers": on_vectors("mean", 3),
    "frozen encoder, distinct tokens of the last layer": on_vectors("distinct"),
    "frozen encoder, distinct tokens of the last three layers": THREE_LAYERS,
    "frozen encoder, distinct tokens of the last four layers": FOUR_LAYERS,
    "frozen encoder, distinct tokens of the last four layers, Nyström": FITS["nystroem_ridge"],
    "frozen encoder, its own pooler": read_pooler,
    "blend: last three layers + word TF-IDF": blend(THREE_LAYERS, WORDS),
    "blend: last four layers + word TF-IDF": blend(FOUR_LAYERS, WORDS),
    "blend: 0.6 last four layers + 0.4 character TF-IDF": blend(FOUR_LAYERS, CHARACTERS, 0.4),
    "blend: last four layers + text": blend(FOUR_LAYERS, TEXT),
    "blend: last four layers, Nyström + text": blend(FITS["nystroem_ridge"], TEXT),
    "one ridge on word TF-IDF and the last four layers": read_both_in_one,
}


def initialise_as_ridge(model: LoraRegressor, vectors: np.ndarray, valence: np.ndarray) -> None:
    """As `initialise_head`, but the model predicts as ridge regression: two units of the head carry the line."""
    varying, scaler, ridge = embedding_ridge().fit(vectors, valence)
    parts = varying.inverse_transform([ridge.coef_ / scaler.scale_, scaler.mean_])  # 0 where left out
    slope, mean = torch.from_numpy(parts).float()
    model.start_at(valence.mean())
    hidden, output, size = model.head.layers[0], model.output_layer, slope.norm().sqrt()
    with torch.no_grad():
        for unit, sign in enumerate((1.0, -1.0)):
            hidden.weight[unit] = sign * slope / size
            hidden.bias[unit] = -sign * float(slope @ mean) / size
            output.weight[0, unit] = sign * size


class AttentionPooling(nn.Module):
    """A learned score per token, its softmax over the chunk the weights of the mean; it starts as mean pooling."""

    def __init__(self, encoder: Encoder, recipe: Recipe):
        super().__init__()
        self.layers, self.score = recipe.pooled_layers, nn.Parameter(torch.zeros(encoder.hidden_size))

    def forward(self, outputs, packing, token_weights):
        chunks = (sum(outputs[-self.layers :]) / self.layers).split(packing.lengths)
        return torch.stack([(chunk @ self.score.to(chunk.dtype)).softmax(0) @ chunk for chunk in chunks])


class LearnedMix(nn.Module):
    """A learned softmax weight per adapted layer (as in ELMo, Peters et al. 2018); it starts as their plain mean."""

    def __init__(self, encoder: Encoder, recipe: Recipe):
        super().__init__()
        self.pooling, self.mix = recipe.pooling, nn.Parameter(torch.zeros(recipe.adapted_layers))

    def forward(self, outputs, packing, token_weights):
        mixed = sum(weight * output for weight, output in zip(self.mix.softmax(0), outputs, strict=True))
        return pool_tokens(mixed, packing, self.pooling, token_weights)


EARLIER = {"initialise": initialise_as_ridge, "teachers": (word_tfidf_ridge, lambda *_: embedding_ridge())}


def changed(make_pooler: Callable = lambda *_: None, **changes) -> Method:
    """The earlier recipe with some changes."""
    return Method("", recipe=replace(LORA_TUNED, **changes), options=EARLIER, make_pooler=make_pooler)


TRAININGS = {
    "no change": changed(),
    "pooling three layers": changed(pooled_layers=3),
    "pooling the last layer only": changed(pooled_layers=1),
    "pooling the mean of all tokens": changed(pooling="mean"),
    "pooling [CLS]": changed(pooling="cls", pooled_layers=1),
    "pooling by attention": changed(AttentionPooling, pooling="mean"),
    "pooling a learned mix of layers": changed(LearnedMix),
    "hard labels": changed(distillation_weight=0.0),
    "head initialisation at the mean": changed(init="mean"),
    "head initialisation at random": changed(init="random"),
    "two epochs": changed(epochs=2),
    "loss per chunk": changed(loss_on="chunk"),
    "adapter learning rate 1e-4": changed(learning_rate=1e-4),
    "adapter learning rate 1e-3": changed(learning_rate=1e-3),
    "head learning rate 1e-3": changed(head_learning_rate=1e-3),
    "adapters on all matrices": changed(target_modules=("query", "key", "value", "dense")),
    "two adapted layers": changed(adapted_layers=2, pooled_layers=2),
    "rank 32": changed(rank=32, alpha=64),
    "alpha 64": changed(alpha=64),
    "no LoRA dropout": changed(lora_dropout=0.0),
    "weight decay 0.1": changed(weight_decay=0.1),
    "better teachers": Method("", recipe=LORA_TUNED, options={"initialise": initialise_as_ridge}),
    "better teachers, Nyström head initialisation (as shipped)": METHODS["lora"],
}


def load_folds() -> list[Problem]:
    return [replace(problem, held=problem.validation) for problem in problems("folds", "subset")]  # of the subset only


def score_held(problem: Problem, prediction: np.ndarray) -> float:
    return score(problem.songs["valence"].iloc[problem.held], prediction)["mse"]


def train_lora(method: Method) -> dict[str, object]:
    """Validation MSE of one training on one fold: after every epoch, and of the running average of its parameters."""
    problem, averages = load_folds()[FOLD_OF_LORA], {}

    def update(optimizer, *_) -> None:
        for values in (values for group in optimizer.param_groups for values in group["params"]):
            averages.setdefault(values, values.detach().clone()).lerp_(values.detach(), 1 - DECAY)

    hook = register_optimizer_step_post_hook(update)
    model, history, _ = method.train(problem)
    hook.remove()
    model.copy_parameters({name: averages[values] for name, values in model.trainable_parameters().items()})
    inputs = model.inputs_from(problem.features(method.recipe.adapted_layers).subset(problem.held))
    averaged = round(score_held(problem, score_songs(model, inputs)), 5)
    return {"mse_by_epoch": [round(line["validation_mse"], 5) for line in history], "averaged": averaged}


def read_folds(fit: Callable[[Problem], np.ndarray]) -> dict[str, object]:
    """MSE of every fold."""
    errors = [score_held(problem, fit(problem).clip(0, 1)) for problem in load_folds()]
    return {"mse_of_folds": np.round(errors, 5).tolist(), "mean": round(float(np.mean(errors)), 5)}


def main() -> None:
    for name in sys.argv[1:] or [*READINGS, *TRAININGS]:
        found = read_json(FILE)
        if name not in found:
            found[name] = read_folds(READINGS[name]) if name in READINGS else train_lora(TRAININGS[name])
            print(name, found[name], flush=True)
            write_json(FILE, found)


if __name__ == "__main__":
    main()
