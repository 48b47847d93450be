"""Words and sound in one network: python -m benchmarks.quality.sound_network

Mid-level fusion (Delbouys et al. 2018, "Music Mood Detection Based on Audio and Lyrics with Deep Neural Net"): LoRA as
in the recipe, on the billboard table, but its head reads the song's audio features beside the pooled vector. Both are
trained together, once, with seed 42; the test artists are predicted. Beside it the kernel regression on the frozen
encoder's vectors and the audio features, from which the head starts. Writes results/sound_network.csv (no lyrics).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from benchmarks.quality.methods import RESULTS, problems
from lyric_utils._packed import to_device
from lyric_utils.audio import AUDIO_FEATURES
from lyric_utils.classical import nystroem_ridge
from lyric_utils.encoders import pool_tokens
from lyric_utils.evaluation import score
from lyric_utils.features import Features
from lyric_utils.fusion import sound_features
from lyric_utils.models import RegressionHead, build_model, score_songs
from lyric_utils.profiles import LORA_TUNED
from lyric_utils.training import Examples, fit

COPIES = 30  # of the 13 audio features: as many dimensions as the words have, so that the first kernel hears both
RECIPE = replace(LORA_TUNED, distillation_weight=0.0)  # its teachers are deaf


@dataclass(frozen=True)
class WithAudio:
    """The features of some chunks, and the audio features of the songs that they belong to."""

    inputs: Features
    audio: np.ndarray  # (n_songs, n)

    lengths = property(lambda self: self.inputs.lengths)
    song_index = property(lambda self: self.inputs.song_index)
    input_ids = property(lambda self: self.inputs.input_ids)

    def read(self, indices: np.ndarray, device: torch.device | str = "cpu") -> tuple:
        rows, packing = self.inputs.read(indices, device)
        packing.audio = to_device(self.audio[self.song_index[indices]], device)
        return rows, packing

    def read_token_weights(self, indices: np.ndarray) -> np.ndarray | None:
        return self.inputs.read_token_weights(indices)


class PoolAndListen(nn.Module):
    """The recipe's pooling, with the audio features behind the vector: (n_chunks, hidden + n)."""

    def forward(self, outputs, packing, token_weights):
        mean = sum(outputs[-RECIPE.pooled_layers :]) / RECIPE.pooled_layers
        return torch.cat([pool_tokens(mean, packing, RECIPE.pooling, token_weights), packing.audio], dim=1)


def main() -> None:
    (problem,) = problems("test", "billboard")
    data = problem.held_of_own_table.data(RECIPE.adapted_layers)
    tables = {side: songs[[*AUDIO_FEATURES]].astype(float) for side, songs in data.split._asdict().items()}
    listen = make_pipeline(FunctionTransformer(sound_features), StandardScaler()).fit(tables["train"])
    audio = {side: np.tile(listen.transform(table), COPIES).astype(np.float32) for side, table in tables.items()}

    model = build_model(data.encoder, RECIPE, pooler=PoolAndListen())
    model.head = RegressionHead(data.encoder.hidden_size + audio["train"].shape[1])
    model.start = {name: values.detach().clone() for name, values in model.trainable_parameters().items()}
    examples = {}
    for side, songs in data.split._asdict().items():
        features = data.features[side]
        vectors = np.hstack([features.pooled(RECIPE.pooling, RECIPE.pooled_layers), audio[side]])
        inputs = WithAudio(model.inputs_from(features), audio[side])
        examples[side] = Examples(inputs, songs["valence"].to_numpy(), vectors)
    train, validation, test = examples.values()

    kernel = nystroem_ridge(*train.pooled.shape).fit(train.pooled, train.valence)
    table = data.split.test[["row"]].assign(kernel=kernel.predict(test.pooled).clip(0, 1))
    print(f"kernel on frozen vectors: R² {score(test.valence, table['kernel'])['r2']:.4f}", flush=True)
    history = fit(model, train, validation)
    table["network"] = score_songs(model, test.inputs)
    print(f"network: R² {score(test.valence, table['network'])['r2']:.4f}, {history}")
    table.sort_values("row").to_csv(RESULTS / "sound_network.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
