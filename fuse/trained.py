"""Three trained heads that belong together, and the backbone that makes their features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from cache.aggregate import PAPER_WEIGHTS
from cache.clips import ClipRule
from cache.common.errors import MrrnError, ScoreError, WeightsError
from cache.common.text import visible
from cache.fingerprint import CENTER_VIEW, Level, is_imported
from cache.store import FeatureCache
from extract.fingerprint import settings_of
from extract.network.weights import Weights, is_file_spec, load_weights
from extract.pipeline import decode_settings
from extract.settings import ExtractSettings, device_defaults
from fuse.bundle import read_bundle
from fuse.calibration import Calibration, calibrate
from fuse.choice import RunChoice
from fuse.scores import differences, read_heldout, run_differences
from train.checkpoint import load_head
from train.config import RunConfig
from train.heads import Head

MOST_CLIP_FRAMES: Final = 100_000
"""Frames of a clip up to which heads are believed; each video's clips are made as large."""

MOST_FPS: Final = 1000
"""Frames a second up to which a clip rule is believed."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Three trained heads that belong together, and what their features have to be made with."""

    heads: Mapping[Level, Head]
    classes: tuple[str, ...]
    """`[K]` names in label order."""
    clips: ClipRule
    identity: Mapping[str, Any]
    """Fingerprint fields that the features depend on."""
    environment: Mapping[str, Any]
    """Fingerprint fields that say where the features were computed."""
    fusion_weights: Mapping[Level, float]
    calibration: Calibration | None = None
    """None if there were no held-out runs to find it on."""


def load_heads(
    folders: Mapping[Level, Path],
    fusion_weights: Mapping[Level, float] = PAPER_WEIGHTS,
    calibration: Calibration | None = None,
    bundled: str | None = None,
    clips: str | None = None,
) -> Heads:
    """The heads of three run folders.

    Their clip rule is the runs', changed by the text `bundled`, then by `clips` (`ClipRule.changed`). Raises
    `WeightsError` unless the runs are finished and of one dataset, cache, split, pooling and clip rule.
    """
    loaded = {level: load_head(folder) for level, folder in folders.items()}
    _check_together({level: config for level, (_, config) in loaded.items()})
    _, high = loaded["high"]
    check_not_imported(high.fingerprint["identity"])
    try:
        identity, environment = high.fingerprint["identity"], high.fingerprint["environment"]
        decode_settings(settings_of(identity, environment))
        _ = identity["weights"], identity["weights_sha256"], environment["device"]
    except (KeyError, TypeError, ValueError, MrrnError) as error:
        raise WeightsError(
            f"the heads do not say what their features were made with: {error!r}; train again"
        ) from error
    rule = high.clips
    for text in filter(None, (bundled, clips)):
        rule = rule.changed(text)
    if rule.length > MOST_CLIP_FRAMES or (rule.fps or 0) > MOST_FPS:
        raise WeightsError(f"the clip rule {rule} is beyond {MOST_CLIP_FRAMES:,} frames or {MOST_FPS} a second")
    return Heads(
        heads={level: head for level, (head, _) in loaded.items()},
        classes=high.classes,
        clips=rule,
        identity=identity,
        environment=environment,
        fusion_weights=fusion_weights,
        calibration=calibration,
    )


def check_not_imported(identity: Mapping[str, Any]) -> None:
    """Raises `ScoreError` if another program made the features: those of a new video cannot be made here."""
    if is_imported(identity):
        raise ScoreError(
            f"the heads read features that another program made ({visible(str(identity['backbone']))}), so those of "
            "new videos cannot be made here: extract the videos with a backbone of this program to predict others"
        )


def _check_together(configs: Mapping[Level, RunConfig]) -> None:
    """Raises `WeightsError` unless the levels' heads are of one dataset, cache, split, pooling and clip rule."""
    problems = run_differences({level: {**vars(config), "clips": config.clips} for level, config in configs.items()})
    problems += differences("classes", {level: config.classes for level, config in configs.items()})
    if problems:
        raise WeightsError(f"the heads do not belong together: {problems[0]}; train them again (`make train`)")


def settings_for(heads: Heads, *, weights: str, device: str, jobs: int) -> ExtractSettings:
    """How the heads' features were made, on the device asked for.

    On a device of another kind, where the last bits differ anyway, in full precision and in batches of its usual size.
    """
    from train.distributed import choose_device

    where = str(choose_device(device))
    same_kind = where.startswith("cuda") == str(heads.environment["device"]).startswith("cuda")
    made_with = settings_of(heads.identity, heads.environment)
    return replace(
        made_with,
        weights=weights,
        views=(CENTER_VIEW,),
        device=where,
        precision=made_with.precision if same_kind else "fp32",
        batch_frames=made_with.batch_frames if same_kind else device_defaults(where).batch_frames,
        jobs=jobs,
    )


def weights_for(heads: Heads, given: str | None, recorded: str | None = None) -> str:
    """Which backbone weights to load: those given, else those recorded by the cache, else the fingerprint's.

    Raises `WeightsError` if the fingerprint names a file, whose folder it does not know.
    """
    named = str(heads.identity["weights"])
    if given or recorded:
        return str(given or recorded)
    if is_file_spec(named):
        raise WeightsError(
            f"these heads need the backbone weights {named}, sha256 of their numbers "
            f"{heads.identity['weights_sha256']}; say where the file is with --weights (weights= in Python)"
        )
    return named


def backbone_weights(heads: Heads, settings: ExtractSettings) -> Weights:
    """The weights that make the heads' features. Raises `WeightsError` if they are not those of training."""
    weights = load_weights(settings.weights, settings.backbone)
    if weights.sha256 != heads.identity["weights_sha256"]:
        raise WeightsError(
            f"the heads were trained on features of weights {heads.identity['weights']} "
            f"(sha256 {heads.identity['weights_sha256']}); {weights.text} has sha256 {weights.sha256}: give the same "
            "weights with --weights (weights= in Python)"
        )
    if (now := str(weights.preprocess)) != (then := heads.identity.get("transform")):
        raise WeightsError(
            f"the heads were trained on pictures seen by {then!r}; {weights.text} is taken to see them by {now!r}: "
            f"give the weights under the name that they had, {heads.identity['weights']}"
        )
    return weights


def chosen_heads(
    choice: RunChoice | None, bundle: Path | None, weights: str | None, clips: str | None = None
) -> tuple[Heads, str]:
    """The heads of a bundle, or else of the chosen runs, and the backbone's weights that go with them."""
    if choice is None:
        assert bundle is not None
        heads, recorded = load_heads(*read_bundle(bundle), clips), None
    else:
        with FeatureCache.open(choice.workspace.cache(choice.dataset)) as cache:
            check_not_imported(cache.fingerprint.identity)
            recorded = cache.settings.get("weights")
        choice = choice.of_new_videos()
        heldout = read_heldout(choice)
        calibration = calibrate(heldout.levels, heldout.labels, PAPER_WEIGHTS) if heldout else None
        heads = load_heads(choice.folders(), calibration=calibration, clips=clips)
    return heads, weights_for(heads, weights, recorded)
