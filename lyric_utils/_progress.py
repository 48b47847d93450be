"""The one way to show progress: a widget in Jupyter, text in a terminal, nothing where nobody is watching."""

import os
import sys

from tqdm.auto import tqdm


def progress(iterable=None, **options) -> tqdm:
    """A tqdm bar with an estimate of the time left, where a person sees it; `options` are those of tqdm.

    That is in a terminal, or in a notebook whose front end can answer questions: nbconvert, nbclient and nbval run
    cells with `allow_stdin=False`; Jupyter, Colab and editors do not. Of several processes, the first alone shows it.
    """
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    watched = getattr(kernel, "_allow_stdin", False) if kernel else sys.stderr is not None and sys.stderr.isatty()
    disable = not watched or os.environ.get("RANK", "0") != "0"
    return tqdm(iterable, **{"leave": False, "disable": disable, "dynamic_ncols": True} | options)
