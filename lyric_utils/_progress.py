"""The one way to show progress: a widget in Jupyter, text in a terminal, nothing where nobody is watching."""

import os
import sys

from tqdm.auto import tqdm


def progress(iterable=None, **options) -> tqdm:
    """A tqdm bar with an estimate of the time left; `options` are those of tqdm."""
    return tqdm(iterable, **{"leave": False, "disable": not _is_watched(), "dynamic_ncols": True} | options)


def _is_watched() -> bool:
    """Whether a person sees the output now: a terminal, or a notebook whose front end can answer questions.

    nbconvert, nbclient and nbval run cells with `allow_stdin=False`; Jupyter, Colab and editors do not. Of several
    processes, the first alone shows progress.
    """
    if os.environ.get("RANK", "0") != "0" or sys.stderr is None:
        return False
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    return getattr(kernel, "_allow_stdin", False) if kernel else sys.stderr.isatty()
