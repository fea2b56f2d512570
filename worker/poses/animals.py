"""What tracking has to know of a model for several animals; plain values, that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deeplabcut.utils import auxiliaryfunctions

from posedrop.errors import AnalysisError, ModelError

#: DeepLabCut's project-wide settings of tracking, in the model's folder.
INFERENCE_CONFIG = "inference_cfg.yaml"
METHODS = ("ellipse", "box", "skeleton")


@dataclass(frozen=True)
class MultiAnimalConfig:
    """What tracking has to know of a model."""

    scorer: str
    bodyparts: list[str]
    """Those that every individual has."""
    unique_bodyparts: list[str]
    """Those that there is one of in the picture."""
    individuals: list[str]
    """Those that the network was trained for, and finds at most."""
    track_method: str
    """The project's own."""
    settings: dict[str, Any]
    """DeepLabCut's inference_cfg."""
    named: list[str] = field(default_factory=list)
    """What config.yaml calls them, which tracks are made and called by: it may have been edited
    since. Empty: an older posedrop wrote this, or nothing is said; the individuals'."""

    @property
    def tracks(self) -> list[str]:
        """Names of tracks, as many as DeepLabCut makes."""
        return self.named or self.individuals


def multi_animal_config(
    metadata: Mapping[str, Any], scorer: str, project: Mapping[str, Any], settings: Any = None
) -> MultiAnimalConfig:
    """Return what tracking has to know of a model.

    Args:
        metadata: the part of that name of its pytorch_config.yaml.
        scorer: what the table will be called by.
        project: its config.yaml; empty for an export.
        settings: the content of its inference_cfg.yaml; None: it has none, DeepLabCut's own count.

    Raises:
        ModelError: code ``model_damaged``: the settings lack something.
    """
    individuals = [str(name) for name in metadata["individuals"]]
    default = auxiliaryfunctions.read_plainconfig(
        auxiliaryfunctions.get_deeplabcut_path() / INFERENCE_CONFIG
    )
    complete = {**default, "topktoretain": len(individuals)} if settings is None else settings
    if not isinstance(complete, Mapping) or default.keys() - complete.keys():
        raise ModelError(f"the model's {INFERENCE_CONFIG} is incomplete", code="model_damaged")
    if not isinstance(complete["pcutoff"], int | float):
        words = f"pcutoff in the model's {INFERENCE_CONFIG} is no number: {complete['pcutoff']!r}"
        raise ModelError(words[:300], code="model_damaged")
    method = str(project.get("default_track_method") or METHODS[0])
    named = project.get("individuals")
    return MultiAnimalConfig(
        scorer=scorer,
        bodyparts=[str(name) for name in metadata["bodyparts"]],
        unique_bodyparts=[str(name) for name in metadata.get("unique_bodyparts") or []],
        individuals=individuals,
        track_method=method if method in METHODS else METHODS[0],
        settings=dict(complete),
        named=[str(name) for name in named] if isinstance(named, list) else [],
    )


def no_identity() -> AnalysisError:
    """Return what is said where animals are to be followed by identities that nobody found.

    DeepLabCut would give them to the animals in the order of the frame's assemblies.
    """
    return AnalysisError(
        "identity_only follows animals by what they look like, which this model has not learned: "
        "ask without it, or train a bottom-up model with `identity: true` in the project's "
        "config.yaml, on frames whose labels tell the animals apart",
        code="no_identity",
        field="args.identity_only",
    )
