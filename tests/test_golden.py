"""The shipped checkpoints predict what they predicted when they were made, whatever the code does differently since.

`golden.json` has what the code of that time predicted for every fifth song of the sample. The tolerance is the
difference between processors.
"""

import json

import numpy as np
import pytest
from conftest import ROOT

import lyric_utils as lu
from lyric_utils.checkpoints import shipped_folder

GOLDEN = json.loads((ROOT / "tests" / "golden.json").read_text())


@pytest.mark.parametrize("name", GOLDEN)
def test_the_sample_is_predicted_as_before(name, sample, encoder):
    model = lu.load_model(shipped_folder(name), encoder)
    np.testing.assert_allclose(model.predict(sample["lyrics"][::5]), GOLDEN[name], atol=1e-3)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_shipped_checkpoint_reproduces_its_table_of_predictions(name, subset, encoder):
    folder = shipped_folder(name)
    predictions = lu.load_results(folder).predictions
    songs = subset.set_index("row").reindex(predictions["row"])
    if songs["artist"].tolist() != predictions["artist"].tolist():
        pytest.skip(f"the table in LYRICS_DATA numbers its songs differently than {folder.name}/predictions.csv")
    difference = np.abs(lu.load_model(folder, encoder).predict(songs["lyrics"]) - predictions["prediction"])
    print(f"{name}: the largest of {len(difference):,} differences is {difference.max():.1e}")
    assert difference.max() < 1e-3
