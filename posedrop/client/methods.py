"""A methods paragraph for a paper, of what a run's result.json says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CITED = {
    "deeplabcut": "Mathis, A. et al. DeepLabCut: markerless pose estimation of user-defined body "
    "parts with deep learning. Nat. Neurosci. 21, 1281-1289 (2018).",
    "protocol": "Nath, T. et al. Using DeepLabCut for 3D markerless pose estimation across species "
    "and behaviors. Nat. Protoc. 14, 2152-2176 (2019).",
    "several": "Lauer, J. et al. Multi-animal pose estimation, identification and tracking with "
    "DeepLabCut. Nat. Methods 19, 496-504 (2022).",
    "superanimal": "Ye, S. et al. SuperAnimal pretrained pose estimation models for behavioral "
    "analysis. Nat. Commun. 15, 5165 (2024).",
    "ctd": "Zhou, M., Stoffl, L., Mathis, M. W. & Mathis, A. Rethinking pose estimation in crowds: "
    "overcoming the detection information bottleneck and ambiguity. ICCV (2023).",
}


def paragraph(result: Mapping[str, Any]) -> str:
    """Return how the poses of a run were found: sentences, an empty line, then what to cite.

    Args:
        result: result.json, of whatever version: what it does not say is left out.
    """
    args, details = _tree(result, "args"), _tree(result, "details")
    versions, model = _tree(result, "versions"), _tree(result, "model")
    analysis = str(result.get("analysis", ""))
    sentences = [_network(analysis, versions, model, details)]
    if (frames := _frames(result, args)) is not None:
        sentences.append(frames)
    sentences += [*_tracking(args, details), *_filtering(args)]
    if (pcutoff := args.get("pcutoff")) is not None:
        sentences.append(f"Keypoints with a likelihood below {pcutoff} were not drawn.")
    others = [
        f"{name} {version}" for name, version in sorted(versions.items()) if name != "deeplabcut"
    ]
    sentences.append(
        f"The run was made by posedrop (analysis {analysis}, version "
        f"{result.get('analysis_version') or 'unknown'}"
        + (f"; {', '.join(others)}" if others else "")
        + f"; id {result.get('analysis_id', '')})."
    )
    cited = _citations(analysis, args, details)
    return "\n".join([" ".join(sentences), *(["", *cited] if cited else [])])


def _tree(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = result.get(name)
    return found if isinstance(found, Mapping) else {}


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def _network(
    analysis: str,
    versions: Mapping[str, Any],
    model: Mapping[str, Any],
    details: Mapping[str, Any],
) -> str:
    if "deeplabcut" not in versions:
        return f"The video was analysed by {analysis}."
    words = f"Poses were estimated with DeepLabCut {versions['deeplabcut']}"
    if analysis == "superanimal":
        words += ", by a pretrained SuperAnimal network"
    if model.get("name"):
        digest = str(model.get("digest", ""))[:12]
        words += f" (model {model['name']}, digest {digest})"
    computed = _tree(details, "precision").get("used") or details.get("precision")
    told = [
        f"{what} {value}"
        for what, value in (
            ("network", details.get("net_type")),
            ("snapshot", details.get("snapshot")),
            ("arithmetic", computed),
        )
        if isinstance(value, str) and value
    ]
    return f"{words}{'; ' if told else ''}{', '.join(told)}."


def _frames(result: Mapping[str, Any], args: Mapping[str, Any]) -> str | None:
    rows = result.get("rows")
    if not isinstance(rows, int):
        return None
    words = f"{rows:,} frames were analysed"
    stride = max(1, _whole(args.get("stride"), 1))
    if stride != 1:
        words += f" (one in {stride})"
    if isinstance(crop := args.get("crop"), Mapping):
        words += f", cropped to columns {crop.get('x1')}-{crop.get('x2')}"
        words += f" and rows {crop.get('y1')}-{crop.get('y2')}"
    missing = result.get("missing")
    ranges = (
        [each for each in missing if isinstance(each, Mapping)] if isinstance(missing, list) else []
    )
    spans = [_whole(each.get("last"), 0) - _whole(each.get("first"), 0) for each in ranges]
    lost = sum(span // stride + 1 for span in spans)
    return f"{words}; {lost:,} could not be decoded and count as missing." if lost else f"{words}."


def _tracking(args: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    if (most := _whole(args.get("max_individuals"), 0)) > 1:  # a SuperAnimal's
        return [f"Up to {most} animals were found in each frame, each frame by itself."]
    method = details.get("track_method") or args.get("track_method")
    named = details.get("individuals")
    # What was asked for: an older result names the project's individuals all the same.
    animals = _whole(args.get("animals"), 0) or (len(named) if isinstance(named, list) else 0)
    if not method or animals < 1:
        return []
    what = "1 animal was" if animals == 1 else f"{animals} animals were"
    how = f" with DeepLabCut's {method} tracker" if method != "auto" else ""
    return [f"{what} followed{how}."]


def _filtering(args: Mapping[str, Any]) -> list[str]:
    match args.get("filter"):
        case "median":
            window = args.get("filter_window")
            return [f"Filtered trajectories were smoothed by a median over {window} frames."]
        case "arima":
            names = ("arima_ar_degree", "arima_ma_degree", "arima_p_bound", "arima_alpha")
            told = ", ".join(f"{name.removeprefix('arima_')} {args.get(name)}" for name in names)
            return [f"Filtered trajectories were smoothed by a SARIMAX model ({told})."]
        case _:
            return []


def _citations(analysis: str, args: Mapping[str, Any], details: Mapping[str, Any]) -> list[str]:
    if analysis not in {"deeplabcut_2d", "superanimal"}:
        return []
    wanted = ["deeplabcut", "protocol"]
    if analysis != "superanimal" and _tracking(args, details):
        wanted.append("several")
    if analysis == "superanimal":
        wanted.append("superanimal")
    if "ctd" in (args.get("track_method"), str(details.get("net_type", ""))[:3]):
        wanted.append("ctd")
    return [_CITED[name] for name in wanted]
