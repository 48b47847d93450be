"""lyric_utils: predict a song's valence from its lyrics. The notebooks tell the story; this package does the steps."""

from importlib import import_module

_MODULES = {  # from which a name is imported when it is first used, so that `import lyric_utils` takes no time
    "tables": ["load_songs", "read_songs", "save_songs"], "songs": ["clean_songs", "split_songs"],
    "sources": ["draw_songs", "load_source"], "chunking": ["average_by_song", "chunk_lyrics"],
    "encoders": ["load_encoder"], "features": ["extract_features"], "classical": ["word_tfidf_ridge"],
    "profiles": ["load_profile"], "models": ["BaselineMLP", "LoraRegressor", "build_model"], "training": ["fit"],
    "checkpoints": ["load_model", "load_results", "save_model"], "pipeline": ["prepare", "train_or_load"],
    "evaluation": ["paired_difference", "score", "score_with_intervals"], "fusion": ["FusionRegressor"],
    "_files": ["LyricsError"],
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
