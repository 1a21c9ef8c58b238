"""Predictions in Python, from a bundle."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from extract.network.engine import open_engine
from fuse.predict import Prediction, predict
from fuse.trained import backbone_weights, chosen_heads, settings_for


class Predictor:
    """The heads of a bundle with their backbone, ready for new videos."""

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        weights: str | None = None,
        device: str = "auto",
        jobs: int = 1,
        clips: str | None = None,
    ) -> None:
        """The arguments are the options of `mrrn predict`.

        Raises `WeightsError` if the bundle or the backbone's weights cannot be read, or do not belong together.
        """
        self._heads, spec = chosen_heads(None, Path(bundle), weights, clips)
        self.classes = self._heads.classes
        """`[K]` names in label order."""
        self._settings = settings_for(self._heads, weights=spec, device=device, jobs=jobs)
        self._engine = open_engine(self._settings, backbone_weights(self._heads, self._settings))

    def __repr__(self) -> str:
        made_with = self._heads.identity
        return f"Predictor({len(self.classes)} classes; {made_with['backbone']}, weights {made_with['weights']})"

    def predict(self, videos: Iterable[str | os.PathLike[str]]) -> Iterator[Prediction]:
        """Yields a `Prediction` for each video file, in the order in which they are finished.

        Of a file that cannot be decoded, `fused` is None and `reason` says why.
        """
        paths = [Path(video) for video in videos]
        return predict(paths, self._heads, self._settings, self._engine)
