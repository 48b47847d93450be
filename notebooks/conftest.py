"""Tests of the notebooks run without progress bars: their time-dependent text would count as output that differs."""

import os

os.environ["TQDM_DISABLE"] = "1"
