"""Settings and fixtures that all tests share."""

import os
import tempfile

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "LYRICS_CACHE": tempfile.mkdtemp(prefix="lyrics_cache_"),  # for this session; removed at its end
    "MPLBACKEND": "Agg",
    "TQDM_DISABLE": "1",
}
for name in ("LYRICS_DATA", "LYRICS_PROFILE"):
    os.environ.pop(name, None)

import shutil  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

import lyric_utils as lu  # noqa: E402
from lyric_utils.encoders import as_encoder  # noqa: E402

settings.register_profile("lyrics", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("lyrics")


@pytest.fixture(scope="session")
def encoder():
    """The offline encoder, MiniLM-L6."""
    return lu.load_encoder("minilm")


def make_tiny_encoder() -> lu.Encoder:
    """A BERT of 6 layers x 32 with random weights, always the same, and MiniLM's tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64)
    config.attention_probs_dropout_prob = 0.0
    return as_encoder("tiny", lu.load_encoder("minilm").tokenizer, BertModel(config, add_pooling_layer=False))


@pytest.fixture(scope="session")
def tiny_encoder():
    """For tests in which the encoder need not know a language."""
    return make_tiny_encoder()


@pytest.fixture(scope="session", autouse=True)
def cache_removed():
    yield
    shutil.rmtree(os.environ["LYRICS_CACHE"], ignore_errors=True)
