"""Settings and fixtures that all tests share."""

import os
import tempfile

SUBSET = os.environ.pop("LYRICS_DATA", None)  # a table of the public subset, for the fixture `subset` alone
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "LYRICS_CACHE": tempfile.mkdtemp(prefix="lyrics_cache_"),  # for this session; removed at its end
    "LYRICS_PRECISION": "float32",  # exact everywhere; tests of half precision say so
    "MPLBACKEND": "Agg",
}
for name in ("LYRICS_PROFILE", "LYRICS_EPOCHS", "LYRICS_RETRAIN"):
    os.environ.pop(name, None)

import resource  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, PartialState  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from torch import nn  # noqa: E402
from transformers import BertConfig, BertModel, BertTokenizer, MPNetConfig, MPNetModel, MPNetTokenizer  # noqa: E402

import lyric_utils as lu  # noqa: E402
from lyric_utils.blend import BlendRegressor  # noqa: E402
from lyric_utils.checkpoints import tabulate_predictions  # noqa: E402
from lyric_utils.classical import char_tfidf_ridge  # noqa: E402
from lyric_utils.encoders import Encoder, as_encoder, minilm_folder  # noqa: E402
from lyric_utils.profiles import BASELINE, BLEND, FULL, LORA_PAPER, LORA_TUNED  # noqa: E402

ROOT = Path(__file__).parent.parent
SONGS = [
    "The harbour lights are out and I have nobody to call",
    "Dance on the tables, the bakery's open, there's cake for us all " * 60,
    "Grey rain",
]
RECIPES = {"baseline": BASELINE, "lora": LORA_TUNED, "lora_paper": LORA_PAPER, "full": FULL, "blend": BLEND}

settings.register_profile("lyrics", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("lyrics")


def run_python(*arguments, **environment) -> subprocess.CompletedProcess:
    """Run another Python in the folder of the tests, where it finds them and this package."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, timeout=120)


class Child:
    """A copy of this process that runs something, and what it said; all that it needs is imported already."""

    def __init__(self, function: Callable[[], object]):
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        if (pid := os.fork()) == 0:
            torch.set_num_threads(1)  # those of the parent are not here
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for stream in (1, 2):
                os.dup2(self.said.fileno(), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", 1) for stream in (1, 2))
            os._exit(self.run(function))
        self.pid, self.code = pid, None

    @staticmethod
    def run(function) -> int:
        try:
            function()
        except SystemExit as stop:
            if isinstance(stop.code, int):
                return stop.code
            print(stop.code, file=sys.stderr)
            return 1
        except BaseException as error:
            print("Traceback", repr(error))
            return 99
        return 0

    def wait(self, seconds: float = 60) -> int:
        """Its exit code, below zero for a signal; it is killed after that time."""
        started = time.perf_counter()
        while self.code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.perf_counter() - started > seconds:
                self.stop()
                raise TimeoutError
            else:
                time.sleep(0.001)
        return self.code

    def wait_until(self, event: Callable[[], bool]) -> None:
        while not event() and self.code is None:
            time.sleep(0.0005)
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None

    def stop(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def message(self) -> str:
        self.said.seek(0)
        return self.said.read()


@contextmanager
def child(function: Callable[[], object]):
    started = Child(function)
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def two_processes(function: Callable[[], object]):
    """Two copies of this process that run something together, as `torchrun` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def run(rank: str):
        os.environ |= where | {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        for singleton in (AcceleratorState, PartialState):  # that this process has made for itself alone
            singleton._reset_state()
        function()

    with child(lambda: run("0")) as first, child(lambda: run("1")) as second:
        yield first, second


@pytest.fixture(scope="session")
def encoder():
    """The offline encoder, MiniLM-L6."""
    return lu.load_encoder("minilm")


def make_tiny_encoder() -> Encoder:
    """A BERT of 6 layers x 32 with random parameters, always the same, and the first 8,000 tokens of MiniLM."""
    torch.manual_seed(0)
    tokens = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").split("\n")[:8_000]
    tokenizer = BertTokenizer({token: number for number, token in enumerate(tokens)}, model_max_length=512)
    size = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokens), attention_probs_dropout_prob=0.0, **size)
    return as_encoder("tiny", tokenizer, BertModel(config, add_pooling_layer=False))


@pytest.fixture(scope="session")
def tiny_encoder():
    """For tests in which the encoder need not know a language."""
    return make_tiny_encoder()


@pytest.fixture(scope="session")
def encoder_folder(tiny_encoder, tmp_path_factory):
    """The same, saved: its path is its name."""
    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    tiny_encoder.network.save_pretrained(folder)
    tiny_encoder.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_mpnet(tmp_path_factory):
    """An MPNet of that size whose distances between tokens matter, from a folder that also holds a pooler."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mpnet") / "encoder"
    words = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").split("\n")[:8_000]
    tokens = ["<s>", "<pad>", "</s>", "<mask>", *words]
    MPNetTokenizer({token: number for number, token in enumerate(tokens)}, model_max_length=512).save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64}
    network = MPNetModel(MPNetConfig(vocab_size=len(tokens), max_position_embeddings=514, **size))
    nn.init.normal_(network.encoder.relative_attention_bias.weight, std=2.0)
    network.save_pretrained(folder)
    return lu.load_encoder(folder)


def disturb(model):
    """Add noise to every trainable parameter, so that nothing stands at its start; scores near a half."""
    torch.manual_seed(3)
    with torch.no_grad():
        for values in model.trainable_parameters().values():
            values.add_(0.05 * torch.randn_like(values))
        model.output_layer.weight.mul_(0.2)
        model.output_layer.bias.fill_(0.5)
    return model


@pytest.fixture(params=RECIPES)
def model(request, tiny_encoder):
    """A model of every kind, as if trained."""
    if request.param != "blend":
        return disturb(lu.build_model(tiny_encoder, RECIPES[request.param]))
    text_model = char_tfidf_ridge().fit(SONGS * 5, [0.1, 0.9, 0.3] * 5)
    return BlendRegressor(disturb(lu.build_model(tiny_encoder, LORA_TUNED)), text_model, 0.45, BLEND)


def save_checkpoint(model, folder):
    """Save a model as a checkpoint; returns its predictions of `SONGS`."""
    songs = pd.DataFrame({"row": range(3), "artist": "A", "title": "T", "lyrics": SONGS, "valence": [0.1, 0.9, 0.3]})
    prediction = model.predict(SONGS)
    lu.save_model(
        model,
        folder,
        profile="sample",
        history=[{"epoch": 1, "train_loss": 0.1, "validation_mse": 0.1, "seconds": 1.0}],
        predictions=tabulate_predictions(songs, np.array([1, 3, 1]), prediction),
        metrics=lu.score(songs["valence"], prediction),
    )
    return prediction


@pytest.fixture(scope="session")
def untrained(encoder_folder, tmp_path_factory):
    """The checkpoint of an untrained model that finds its encoder in a folder."""
    folder = tmp_path_factory.mktemp("untrained") / "baseline"
    save_checkpoint(lu.build_model(lu.load_encoder(str(encoder_folder)), BASELINE), folder)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def chunks(tiny_encoder):
    """`SONGS` in short windows: the second has several."""
    return lu.chunk_lyrics(SONGS, tiny_encoder.tokenizer, max_length=128, stride=32)


@contextmanager
def full_disk(_=None):
    """No file may grow above 4 KiB, as when the disk is full in the middle of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def sample():
    """The 150 shipped songs."""
    return lu.load_songs(ROOT / "datasets" / "sample_150.pkl")


@pytest.fixture(scope="session")
def sample_data(encoder_folder):
    """The shipped songs, prepared as their profile says, but for the encoder."""
    return lu.prepare(replace(lu.load_profile("sample"), encoder=str(encoder_folder)))


@pytest.fixture(scope="session")
def subset():
    """The public subset, where LYRICS_DATA names a table of it."""
    if not SUBSET:
        pytest.skip("needs the public subset: set LYRICS_DATA to a table of it")
    return lu.clean_songs(lu.read_songs(SUBSET))[0]


@pytest.fixture(scope="session", autouse=True)
def cache_removed():
    yield
    shutil.rmtree(os.environ["LYRICS_CACHE"], ignore_errors=True)
