"""What tracking has to know of a model for several animals; plain values, that travel as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deeplabcut.utils import auxiliaryfunctions

from posedrop.errors import ModelError

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
    track_method: str
    """The project's own."""
    settings: dict[str, Any]
    """DeepLabCut's inference_cfg."""


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
    method = str(project.get("default_track_method") or METHODS[0])
    return MultiAnimalConfig(
        scorer=scorer,
        bodyparts=[str(name) for name in metadata["bodyparts"]],
        unique_bodyparts=[str(name) for name in metadata.get("unique_bodyparts") or []],
        individuals=individuals,
        track_method=method if method in METHODS else METHODS[0],
        settings=dict(complete),
    )
