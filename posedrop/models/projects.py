"""A DeepLabCut 3 project on a disk: its shuffles, snapshots and configs. No torch.

A laboratory has all of it; a worker has what was pushed, laid out the same.
"""

from __future__ import annotations

import codecs
import locale
import logging
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from posedrop import bounded
from posedrop.errors import ModelError

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
PYTORCH_CONFIG = "pytorch_config.yaml"
MODEL_FOLDERS = "dlc-models-pytorch"
#: Values that a config holds at most, one that is held twice (by YAML's aliases) counted twice.
MOST_PARTS = 10_000
#: How deep they are nested: what copies or writes a config recurses.
MOST_LEVELS = 64
#: Digits of a whole number in it: Python writes none of thousands.
_MOST_DIGITS = 100
#: Bytes of a config: PyYAML reads some hundred thousand a second.
MOST_BYTES = 2**20

SHUFFLE = re.compile(r".*-trainset(?P<percent>\d+)shuffle(?P<shuffle>\d+)")
_SNAPSHOT = re.compile(r"snapshot(?P<best>-best)?-(?P<epochs>\d+)\.pt")
_DETECTOR = re.compile(r"snapshot-detector(?P<best>-best)?-(?P<epochs>\d+)\.pt")


def iteration_folder(project: Path, config: Mapping[str, Any]) -> Path:
    """Return the folder of a project's trained shuffles.

    Raises:
        ModelError: code ``model_damaged``: the config's iteration leads to another place.
    """
    name = f"iteration-{config.get('iteration', 0)}"
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise ModelError(f"the config's iteration can't be {name[10:]!r}", code="model_damaged")
    return project / MODEL_FOLDERS / name


def shuffle_folder(
    project: Path, config: Mapping[str, Any], shuffle: int | None, trainset_index: int = 0
) -> Path:
    """Return the folder of a trained shuffle; None: 1, or the only one there is.

    Args:
        trainset_index: which of the config's TrainingFraction; 0: the first that is there.

    Raises:
        ModelError: there is none, or it is TensorFlow's; the message says what there is.
    """
    iteration = iteration_folder(project, config)
    found: dict[int, list[tuple[int, Path]]] = {}
    for folder in sorted(iteration.iterdir()) if iteration.is_dir() else []:
        match = SHUFFLE.fullmatch(folder.name)
        if match and (folder / "train" / PYTORCH_CONFIG).is_file():
            found.setdefault(int(match["shuffle"]), []).append((int(match["percent"]), folder))
    if not found:
        raise _no_pytorch_model(project, config, iteration)
    if shuffle is None:
        shuffle = next(iter(found)) if len(found) == 1 else 1
    if shuffle not in found:
        there = ", ".join(map(str, sorted(found)))
        raise ModelError(f"{project} has no shuffle {shuffle}; it has: {there}")
    # Like DeepLabCut's trainingsetindex=0: the first training fraction of the config counts.
    fractions = [
        int(100 * number(part, "TrainingFraction")) for part in many(config, "TrainingFraction")
    ]
    if trainset_index:
        fractions = fractions[trainset_index:][:1]
        if not fractions or fractions[0] not in dict(found[shuffle]):
            raise ModelError(
                f"{project} has no shuffle {shuffle} of trainset_index {trainset_index}"
            )
    return min(
        found[shuffle],
        key=lambda one: fractions.index(one[0]) if one[0] in fractions else len(fractions),
    )[1]


def _no_pytorch_model(project: Path, config: Mapping[str, Any], iteration: Path) -> ModelError:
    if config.get("engine") == "tensorflow" or (project / "dlc-models").is_dir():
        return ModelError(
            f"{project} was trained with DeepLabCut's TensorFlow engine; posedrop runs PyTorch "
            "models: train a shuffle with engine=deeplabcut.Engine.PYTORCH",
            code="tensorflow_model",
        )
    return ModelError(
        f"{project} has no trained shuffle: no {PYTORCH_CONFIG} below "
        f"{iteration.relative_to(project)}"
    )


def list_snapshots(train: Path, *, detector: bool = False) -> list[Path]:
    """Return a training folder's snapshots in DeepLabCut's order: by epochs, the best one last."""
    pattern = _DETECTOR if detector else _SNAPSHOT
    found = []
    for file in train.iterdir():
        if match := pattern.fullmatch(file.name):
            found.append((match["best"] is not None, int(match["epochs"]), file))
    return [file for _, _, file in sorted(found)]


def chosen_snapshots(train: Path, config: Mapping[str, Any], wanted: str | None) -> list[Path]:
    """Return the snapshots of a name, or of ``all``; None: the one of the config's snapshotindex.

    Raises:
        ModelError: there is none; the message says what there is.
    """
    there = list_snapshots(train)
    if not there:
        raise ModelError(f"there is no snapshot in {train}: train the model first")
    if wanted == "all":
        return there
    if wanted is None:
        return [indexed_snapshot(there, config.get("snapshotindex", -1), "snapshotindex")]
    named = [file for file in there if file.stem == wanted.removesuffix(".pt")]
    if not named:
        names = ", ".join(file.stem for file in there)
        raise ModelError(f"there is no snapshot {wanted!r} in {train}; there are: {names}")
    return named


def chosen_detector(train: Path, config: Mapping[str, Any]) -> Path:
    """Return the detector's snapshot that the config's detector_snapshotindex names.

    Raises:
        ModelError: there is none.
    """
    there = list_snapshots(train, detector=True)
    if not there:
        raise ModelError(f"a top-down model needs a detector, and {train} has no snapshot of one")
    return indexed_snapshot(
        there, config.get("detector_snapshotindex", -1), "detector_snapshotindex"
    )


def indexed_snapshot(files: Sequence[Path], index: Any, what: str) -> Path:
    """Return the snapshot that ``what`` of a config names by its place; None, ``all``: the last.

    Raises:
        ModelError: there is none at that place; the message says what there is.
    """
    if index is None or index == "all":  # DeepLabCut analyses with the last one then
        index = -1
    try:
        return files[int(index)]
    except (IndexError, TypeError, ValueError) as error:
        names = ", ".join(file.stem for file in files)
        raise ModelError(
            f"the config's {what} is {index!r}, and there are only: {names}"
        ) from error


def stays_inside(root: Path, file: Path) -> Path:
    """Return a file of a stranger's folder, unless a link in there leads to a place outside of it.

    Raises:
        ModelError: code ``link_outside``; the message says where it leads, and what to do.
    """
    real = file.resolve()
    if not real.is_relative_to(root.resolve()):
        raise ModelError(
            f"{file} is a link to {real}, outside of {root}: nothing is read or pushed from "
            f"there; if it belongs to the model, put a copy in its place (cp -rL {root} COPY)",
            code="link_outside",
        )
    return file


# -- configs -------------------------------------------------------------------------------------


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file of a model, as DeepLabCut reads it (YAML 1.2), in whatever encoding.

    Raises:
        ModelError: code ``model_damaged``: it is missing or not what it should be.
    """
    try:
        content = yaml.load(decoded(_bytes_of(path), path.name), Loader=_Yaml12)  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ModelError(f"{path.name} can't be read: {error}", code="model_damaged") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} is not a mapping", code="model_damaged")
    check_parts(content, path.name)
    return content


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():  # a pipe or a device has no end
        raise OSError("there is no such file")
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return raw


def check_parts(config: Any, name: str) -> None:
    """Refuse a config for its size or depth, or because it holds itself.

    Raises:
        ModelError: code ``model_damaged``.
    """
    if bounded.is_larger(config, bounded.parts, MOST_PARTS):
        raise ModelError(f"{name} {_TOO_LARGE}", code="model_damaged")
    if bounded.is_deeper(config, MOST_LEVELS):
        raise ModelError(f"{name} is nested too deeply", code="model_damaged")


def what_is_set(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a project's config without what is left empty: DeepLabCut takes its defaults then."""
    found = {name: value for name, value in config.items() if value is not None and value != ""}
    for name in ("cropping", "multianimalproject"):
        if isinstance(found.get(name), str):  # YAML 1.2 knows no "yes", but DeepLabCut does
            found[name] = found[name].lower() in {"yes", "y", "on", "t", "true", "1"}
    return found


_TOO_LARGE = f"has more than {MOST_PARTS:,} values, or holds itself"


class _Yaml12(yaml.SafeLoader):
    """PyYAML with the plain words and numbers of YAML 1.2: a scorer ``NO`` is none of its bools.

    And within bounds: aliases and merges can make a file endless, or a million times itself, and
    what walks through it (PyYAML first, by merges) would need as long.
    """

    _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read one node, unless there were too many."""
        self._nodes += 1
        if self._nodes > MOST_PARTS:
            raise yaml.YAMLError(f"it {_TOO_LARGE}")
        return super().compose_node(parent, index)

    def get_single_node(self) -> Any:
        """Return the document, before anything is made of it."""
        root = super().get_single_node()
        if root is not None and bounded.is_larger(root, _inside, MOST_PARTS):
            raise yaml.YAMLError(f"it {_TOO_LARGE}")
        return root


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


_CHANGED = {"bool", "float", "int", "value"}
_Yaml12.yaml_implicit_resolvers = {
    first: [(tag, one) for tag, one in known if tag.rpartition(":")[2] not in _CHANGED]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Yaml12.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
    )


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    digits = text.lstrip("-+")
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number in it has {len(digits):,} digits")
    number = int(digits, 0) if digits[1:2] in {"o", "x"} else int(digits)
    return -number if text.startswith("-") else number


_Yaml12.add_constructor("tag:yaml.org,2002:int", _whole_number)


def dumped(content: Mapping[str, Any]) -> str:
    """Return a config as YAML that every reader takes for the same: a text stays a text."""
    return yaml.dump(dict(content), Dumper=_Quoting, sort_keys=False, allow_unicode=True)


class _Quoting(yaml.SafeDumper):
    """PyYAML that quotes what YAML 1.2 takes for a number too, such as a mouse called ``08``.

    By itself it quotes what YAML 1.1 does, where ``08`` and ``1e3`` are texts.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the tag that a plain value gets from one reader or the other."""
        found = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if kind is yaml.ScalarNode and value[:1] in _NUMBER_BEGINS and found == _TEXT:
            # DeepLabCut's reader passes over underscores in numbers.
            value = value.replace("_", "")
            return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return found


_TEXT = "tag:yaml.org,2002:str"
_NUMBER_BEGINS = frozenset("-+.0123456789")
_Quoting.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + known
    for first, known in _Yaml12.yaml_implicit_resolvers.items()
}


#: Encodings of two bytes a character: the first bytes of the usual ones, and the share of all
#: that must be usual.
_CODE_PAGES = (
    ("cp932", (*range(0x81, 0x85), *range(0x88, 0x98)), 0.5),
    ("cp949", range(0xB0, 0xC9), 0.9),
    ("gbk", range(0xB0, 0xD8), 0.5),
    ("big5", range(0xA4, 0xC7), 0.5),
)


def decoded(raw: bytes, name: str) -> str:
    """Return the text of a config: in UTF-8, with a BOM, or as some Windows wrote it.

    DeepLabCut writes and reads in the encoding of its machine, which the file doesn't say. It is
    this machine's, where that can read it, or what the text looks most like.
    """
    for bom, encoding in ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if raw.startswith(bom):
            return raw.decode(encoding)
    for encoding in ("utf-8-sig", locale.getpreferredencoding(do_setlocale=False)):
        with suppress(UnicodeDecodeError, LookupError):
            return raw.decode(encoding)
    encoding = _likely_code_page(raw)
    raw = raw.replace(b"\x98", b" ") if encoding == "cp1251" else raw  # the one that means nothing
    log.warning("%s is not in UTF-8: read as %s; if names look wrong, save it so", name, encoding)
    return raw.decode(encoding)


def _likely_code_page(raw: bytes) -> str:
    for encoding, first_bytes, enough in _CODE_PAGES:
        with suppress(UnicodeDecodeError):
            pairs = [c.encode(encoding) for c in raw.decode(encoding) if not c.isascii()]
            usual = sum(len(pair) == 2 and pair[0] in first_bytes for pair in pairs)
            if usual > enough * len(pairs):
                return encoding
    # Cyrillic words are all of such bytes; of a Latin word few letters are.
    runs = re.findall(rb"[\x80-\xff]+", raw)
    if 2 * sum(len(run) for run in runs if len(run) > 2) > sum(map(len, runs)):
        return "cp1251"
    # Five bytes mean nothing in cp1252.
    return "latin-1" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", raw) else "cp1252"


def wiped_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pytorch_config.yaml without paths, and without what only training needs of them."""
    wiped = mapping(without_paths(config))
    for part in (wiped, mapping(wiped.get("detector"))):
        _clear(part, "resume_training_from", "logger")
        _clear(mapping(part.get("train_settings")), "weight_init")
    _clear(mapping(wiped.get("metadata")), "pose_config_path")
    return wiped


def _clear(part: dict[str, Any], *names: str) -> None:
    part.update({name: None for name in names if name in part})


def wiped_project_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.yaml without paths and without the names of the project's videos."""
    wiped = {name: value for name, value in config.items() if name != "video_sets_original"}
    return {**mapping(without_paths(wiped)), "project_path": ".", "video_sets": {}}


def without_paths(value: Any) -> Any:
    """Return ``value`` with ``.`` in place of every text that is an absolute path."""
    if isinstance(value, Mapping):
        return {without_paths(name): without_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and (
        PurePosixPath(value).is_absolute()
        or PureWindowsPath(value).is_absolute()
        or value.startswith("~")
    ):
        return "."
    return value


def number(value: Any, what: str) -> float:
    """Return a number of a config.

    Raises:
        ModelError: code ``model_damaged``: it is none; the message names ``what`` it is of.
    """
    with suppress(TypeError, ValueError, OverflowError):
        found = float(value)
        if math.isfinite(found):
            return found
    raise ModelError(
        f"the config's {what} is {repr(value)[:80]}, which is no number (0.6 is one): "
        f"correct it in {CONFIG}",
        code="model_damaged",
    )


def many(config: Mapping[str, Any], what: str) -> list[Any]:
    """Return a list of a config; an empty one where it is not set.

    Raises:
        ModelError: code ``model_damaged``: something else is there.
    """
    found = config.get(what) or []
    if not isinstance(found, list):
        raise ModelError(
            f"the config's {what} is {repr(found)[:80]}, which is no list ([0.95] is one): "
            f"correct it in {CONFIG}",
            code="model_damaged",
        )
    return found


#: The likelihood from which a keypoint counts where a model says nothing: DeepLabCut's own.
DEFAULT_PCUTOFF = 0.6


def exported_pcutoff(config: Mapping[str, Any]) -> float:
    """Return the cutoff that an export's config names, if it is one number for all bodyparts.

    DeepLabCut evaluates by it, and takes a list or a mapping of bodyparts there too.
    """
    found = mapping(mapping(config.get("inference")).get("eval")).get("pcutoff")
    if isinstance(found, int | float) and not isinstance(found, bool) and 0 <= found <= 1:
        return float(found)
    return DEFAULT_PCUTOFF


def mapping(value: Any) -> dict[str, Any]:
    """Return a part of a config; an empty one where it is none."""
    return value if isinstance(value, dict) else {}
