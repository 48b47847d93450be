"""What a user relies on in a checkpoint: it brings the model back, and other tools can read it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import ROOT, SONGS, disturb, save_checkpoint
from huggingface_hub import ModelCard
from peft import PeftModel
from torch import nn

import lyric_utils as lu
from lyric_utils.checkpoints import PREDICTION_COLUMNS, shipped_folder, tabulate_predictions
from lyric_utils.profiles import BLEND, LORA_TUNED, PROFILES

NAMES_OF_BEFORE = {
    "lora_dropout": "adapter_dropout",
    "init": "start",
    "distillation_weight": "soft_targets",
    "text_weight": "words_share",
    "rescale": "stretch",
}
SHIPPED = ["baseline", "lora", "lora_banded", "lora_paper", "blend"]


def test_save_and_load_give_the_same_predictions(model, tiny_encoder, tmp_path):
    prediction = save_checkpoint(model, tmp_path / "model")
    assert len(set(prediction)) == len(SONGS)
    loaded = lu.load_model(tmp_path / "model", tiny_encoder)
    np.testing.assert_array_equal(loaded.predict(SONGS), prediction)
    assert type(loaded) is type(model)
    assert (loaded.recipe, loaded.seed) == (model.recipe, model.seed)
    results = lu.load_results(tmp_path / "model")
    np.testing.assert_allclose(results.predictions["prediction"], prediction, rtol=1e-4)
    assert results.config["recipe"]["model"] == model.recipe.model
    assert list(results.predictions.columns) == list(PREDICTION_COLUMNS)


def test_intervals_come_back(model, tiny_encoder, tmp_path):
    """And the card tells of them; a checkpoint of a version without them is read, too."""
    model.residuals = [0.0, 0.0625, 0.1234, 0.25, 1.0]
    save_checkpoint(model, tmp_path / "model")
    loaded = lu.load_model(tmp_path / "model", tiny_encoder)
    assert loaded.residuals == model.residuals
    np.testing.assert_array_equal(loaded.predict(SONGS, interval=0.6), model.predict(SONGS, interval=0.6))
    assert "interval=0.9" in (tmp_path / "model" / "README.md").read_text()
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["residuals"]
    path.write_text(json.dumps(config))
    old = lu.load_model(tmp_path / "model", tiny_encoder)
    assert old.predict(SONGS).tolist() == model.predict(SONGS).tolist()
    save_checkpoint(old, tmp_path / "again")
    again = lu.load_model(tmp_path / "again", tiny_encoder)
    assert old.residuals is again.residuals is None
    assert "interval=" not in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize("residuals", [[], [0.1, 1.1], [np.nan], [None], "0.1", 0.1])
def test_residuals_that_are_none_are_not_saved(residuals, tiny_encoder, tmp_path):
    model = lu.build_model(tiny_encoder, LORA_TUNED)
    model.residuals = residuals
    with pytest.raises(lu.LyricsError, match=r"model\.residuals"):
        save_checkpoint(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_every_setting_of_a_recipe_comes_back(tiny_encoder, tmp_path):
    recipe = replace(LORA_TUNED, target_modules=("key", "output.dense"), attention_dropout=0.25, rank=2, rescale=2.0)
    model = disturb(lu.build_model(tiny_encoder, recipe, seed=7, max_length=64, stride=16))
    prediction = save_checkpoint(model, tmp_path / "model")
    loaded = lu.load_model(tmp_path / "model", tiny_encoder)
    assert (loaded.recipe, loaded.seed, loaded.max_length, loaded.stride) == (recipe, 7, 64, 16)
    np.testing.assert_array_equal(loaded.predict(SONGS), prediction)


def test_a_recipe_of_an_earlier_version_is_read(tiny_encoder, tmp_path):
    recipe = replace(BLEND, lora_dropout=0.2)
    fields = {NAMES_OF_BEFORE.get(name, name): value for name, value in asdict(recipe).items()}
    del fields["target_modules"], fields["attention_dropout"]
    model = disturb(lu.build_model(tiny_encoder, LORA_TUNED))
    prediction = save_checkpoint(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["recipe"] = {name: value for name, value in fields.items() if name != "model"} | {"model": "lora"}
    del config["training_songs"]
    path.write_text(json.dumps(config))
    np.testing.assert_array_equal(lu.load_model(tmp_path / "model", tiny_encoder).predict(SONGS), prediction)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_has_the_recipe_of_its_profile(name, encoder):
    model, results = lu.load_model(shipped_folder(name), encoder), lu.load_results(shipped_folder(name))
    recipe = PROFILES[results.config["profile"]].recipes[name.removesuffix("_banded")]
    assert model.recipe == recipe
    if "residuals" in results.config:
        prediction, low, high = model.predict(SONGS, interval=0.9).T
        assert ((low < prediction) & (prediction < high)).all()
    else:  # it is older than they
        with pytest.raises(lu.LyricsError, match="no residuals"):
            model.predict(SONGS, interval=0.9)
    found = lu.score(results.predictions["valence"], results.predictions["prediction"])
    assert found["mse"] == pytest.approx(results.metrics["mse"], abs=1e-5)
    assert len(results.history) == recipe.epochs


@pytest.mark.parametrize("family", ["tiny_encoder", "tiny_mpnet"])
def test_stock_peft_loads_the_adapter(request, family, tmp_path):
    encoder = request.getfixturevalue(family)
    lora = disturb(lu.build_model(encoder, LORA_TUNED))
    save_checkpoint(lora, tmp_path / "lora")
    fresh = type(encoder.network)(encoder.network.config, add_pooling_layer=False)
    fresh.load_state_dict(encoder.network.state_dict())
    stock = PeftModel.from_pretrained(fresh, tmp_path / "lora").eval()
    ids = torch.tensor([encoder.tokenizer(SONGS[0])["input_ids"]])
    with torch.no_grad():
        adapted = lora.eval().adapted(ids).last_hidden_state
        torch.testing.assert_close(stock(ids).last_hidden_state, adapted)
        assert not torch.allclose(encoder.network(ids).last_hidden_state, adapted)


def test_a_checkpoint_has_a_card_and_names_no_path_of_this_machine(encoder, tmp_path):
    save_checkpoint(lu.build_model(encoder, LORA_TUNED), tmp_path / "lora")
    for path in (tmp_path / "lora").iterdir():
        if path.suffix in (".json", ".md", ".csv"):
            assert "/site-packages/" not in path.read_text()
            assert str(tmp_path) not in path.read_text()
            assert str(ROOT) not in path.read_text()
    card = ModelCard.load(tmp_path / "lora" / "README.md")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.license == "mit"
    assert "lora" in card.data.tags
    assert {result.metric_type for result in card.data.eval_results} == {"mse", "r2"}
    assert "| lora_dropout | 0.1 |" in card.text
    assert "{" not in card.text


def test_a_pooler_of_ones_own_is_not_saved(tiny_encoder, tmp_path):
    """It is no part of the recipe, so what is loaded would be another model."""

    class LastLayer(nn.Module):
        def forward(self, outputs, packing, token_weights):
            return torch.stack([chunk.amax(0) for chunk in outputs[-1].split(packing.lengths)])

    model = lu.build_model(tiny_encoder, LORA_TUNED, pooler=LastLayer())
    with pytest.raises(lu.LyricsError, match="LastLayer"):
        save_checkpoint(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_predictions_hold_no_lyrics(sample):
    songs = sample.head(3).assign(title=["Short", "one two three four five six seven eight nine", "a b c d e f g"])
    table = tabulate_predictions(songs, np.array([1, 2, 1]), np.array([0.1, 0.2, 0.3]))
    assert table["title"].tolist() == ["Short", "one two three four five six seven ...", "a b c d e f g"]
    assert table["words"].tolist() == songs["lyrics"].str.split().str.len().tolist()
    assert "lyrics" not in table.columns
