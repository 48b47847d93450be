"""Two processes train as one does: the same steps on the same songs, whoever computes which of them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_encoder, run_python
from test_training import examples_for, without_dropout

import lyric_utils as lu
from lyric_utils import training
from lyric_utils.profiles import BASELINE, LORA_TUNED

SHORT = ["river", "morning in the kitchen", "a letter from the station", "rain", "the long way home", "one more summer"]
SONGS = [line * (120 if n == 4 else n + 1) for n, line in enumerate(SHORT * 3)]
VALENCE = np.random.default_rng(0).random(len(SONGS))
RECIPE = replace(LORA_TUNED, init="mean", epochs=3, batch_songs=5, learning_rate=1e-2, head_learning_rate=1e-2)
CASES = {
    "songs": RECIPE,
    "chunks": replace(RECIPE, loss_on="chunk", pooling="cls", pooled_layers=1),
    "baseline": replace(BASELINE, epochs=3, batch_songs=5),
    "dropout": RECIPE,
    "kernel": replace(RECIPE, init="kernel"),  # each process fits it, and rounds as its threads add up
}


def run_case(name, encoder, resume_file=None):
    """Train in float32, in micro-batches so small that two processes have different numbers of them."""
    model = lu.build_model(encoder, CASES[name], seed=1)
    if name != "dropout":
        without_dropout(model)
    songs, held_out = examples_for(model, SONGS[:13], VALENCE[:13]), examples_for(model, SONGS[13:], VALENCE[13:])
    history = lu.fit(model, songs, held_out, resume_file, precision="float32")
    return history, {key: values.detach() for key, values in model.trainable_parameters().items()}


def in_small_batches(patch):
    patch(training, "TOKENS_PER_BATCH", 20)


def main(folder: Path) -> None:
    """What each of the two processes does."""
    in_small_batches(setattr)
    accelerator, encoder = training.start_accelerator(), make_tiny_encoder()
    results = {name: run_case(name, encoder, folder / f"{name}.pt") for name in CASES}
    results["resumed"] = run_case("songs", encoder, folder / "songs.pt")
    torch.save(results, folder / f"process_{accelerator.process_index}.pt")
    (folder / "songs.pt").write_bytes(b"damaged") if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    with pytest.raises(lu.LyricsError, match="damaged"):
        run_case("songs", encoder, folder / "songs.pt")
    with pytest.raises(lu.LyricsError, match="2 processes cannot share"):
        lu.fit(
            lu.build_model(encoder, replace(BASELINE, batch_songs=1)),
            *[examples_for(lu.build_model(encoder, BASELINE), SONGS[:3], VALENCE[:3])] * 2,
        )
    accelerator.end_training()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of two processes, by case."""
    folder = tmp_path_factory.mktemp("two")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = run_python(*launch, "test_distributed.py", folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"process_{process}.pt") for process in (0, 1)]


@pytest.fixture(scope="module")
def one(tiny_encoder):
    """The results of this process alone, by case."""
    with pytest.MonkeyPatch.context() as patch:
        in_small_batches(patch.setattr)
        return {name: run_case(name, tiny_encoder) for name in CASES}


def column(result, name):
    return np.array([line[name] for line in result[0]])


@pytest.mark.parametrize("case", ["songs", "chunks", "baseline"])
def test_two_processes_train_as_one(case, one, two):
    np.testing.assert_allclose(column(two[0][case], "validation_mse"), column(one[case], "validation_mse"), atol=1e-6)
    np.testing.assert_allclose(column(two[0][case], "train_loss"), column(one[case], "train_loss"), rtol=1e-3)
    for name, values in one[case][1].items():
        torch.testing.assert_close(two[0][case][1][name], values, atol=1e-5, rtol=0.0, msg=name)
    assert np.ptp(column(one[case], "validation_mse")) > 1e-3  # something was learned


def test_dropout_differs_but_little(one, two):
    difference = np.abs(column(two[0]["dropout"], "validation_mse") - column(one["dropout"], "validation_mse"))
    assert 0 < difference.max() < 0.05


def test_an_initialised_head_differs_by_rounding_at_most(one, two):
    difference = np.abs(column(two[0]["kernel"], "validation_mse") - column(one["kernel"], "validation_mse"))
    assert difference.max() < 5e-3


@pytest.mark.parametrize("case", [*CASES, "resumed"])
def test_processes_end_with_the_same(case, two):
    for name in ("validation_mse", "train_loss"):
        assert column(two[0][case], name).tolist() == column(two[1][case], name).tolist()
    for name, values in two[0][case][1].items():
        assert torch.equal(values, two[1][case][1][name]), name


def test_state_is_taken_up_by_all(two):
    assert two[0]["resumed"][0] == two[0]["songs"][0]
    for name, values in two[0]["songs"][1].items():
        assert torch.equal(values, two[0]["resumed"][1][name]), name


if __name__ == "__main__":
    main(Path(sys.argv[1]))
