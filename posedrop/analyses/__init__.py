"""What an analysis is: all that a plug-in needs, and which analyses are installed."""

from posedrop.analyses.analysis import (
    DEFAULT_ARTEFACTS,
    DEFAULT_MODEL_BYTES,
    ENTRY_POINT_GROUP,
    POSES,
    UNFINISHED,
    Analysis,
    Args,
    Job,
    get,
    installed,
    is_covered,
    is_newer,
    poses_id,
    predictions_id,
)

__all__ = [
    "DEFAULT_ARTEFACTS",
    "DEFAULT_MODEL_BYTES",
    "ENTRY_POINT_GROUP",
    "POSES",
    "UNFINISHED",
    "Analysis",
    "Args",
    "Job",
    "get",
    "installed",
    "is_covered",
    "is_newer",
    "poses_id",
    "predictions_id",
]
