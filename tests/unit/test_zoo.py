"""The model zoo: whose weights are pushed by hand, under its own names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

from handlers.context import Context
from handlers.runs import validation
from posedrop.analyses import superanimal
from posedrop.analyses.superanimal import SuperAnimalArgs
from posedrop.buckets.storage import Storage
from posedrop.errors import BadRequestError, ModelError
from posedrop.models import catalog, packing, zoo
from posedrop.models.push import push
from tests.support.memory_storage import MODELS, MemoryStorage

MOUSE = "superanimal_topviewmouse"
HRNET, RCNN = f"{MOUSE}_hrnet_w32.pt", f"{MOUSE}_fasterrcnn_resnet50_fpn_v2.pt"


@pytest.fixture
def storage() -> Storage:
    return MemoryStorage()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder as somebody has it who downloaded two files."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    for name in (HRNET, RCNN, "README.md"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_zoo_is_pushed_as_a_folder_of_weights(storage: Storage, weights: Path) -> None:
    """One model a SuperAnimal, with the weights that are in the folder and nothing else."""
    model = push(storage, MODELS, weights, MOUSE)
    assert [file.path for file in model.files] == sorted([HRNET, RCNN])
    assert (model.kind, catalog.resolve(storage, MODELS, MOUSE)) == ("zoo", model)
    superanimal.check(SuperAnimalArgs(model=MOUSE), model)


@pytest.mark.parametrize(
    ("name", "folder", "error"),
    [("mice", "zoo", BadRequestError), ("superanimal_bird", "zoo", ModelError)],
)
def test_zoo_has_its_own_names(
    weights: Path, name: str, folder: str, error: type[Exception]
) -> None:
    """Weights are pushed by the name that `superanimal` finds them by, which is theirs alone."""
    with pytest.raises(error, match="--name superanimal_"):
        packing.plan_push(weights.parent / folder, name)


def test_weights_that_are_not_there(storage: Storage, weights: Path) -> None:
    """Whoever asks for a SuperAnimal hears which file to download where, and how to push it."""
    how = f"posedrop models push FOLDER --name {MOUSE}"
    with pytest.raises(BadRequestError, match=how) as caught:
        catalog.resolve(storage, MODELS, MOUSE)
    assert (caught.value.code, caught.value.field) == ("weights_missing", "args.model")
    (weights / RCNN).unlink()
    model = push(storage, MODELS, weights, MOUSE)
    with pytest.raises(BadRequestError, match=f"download {RCNN} from https://.*{how}") as caught:
        superanimal.check(SuperAnimalArgs(model=MOUSE), model)
    assert (caught.value.code, caught.value.field) == ("weights_missing", "args.model")


def test_superanimal_asked_by_name_is_complete() -> None:
    """Networks that aren't named are the SuperAnimal's first; unknown ones are refused."""
    analysis = superanimal.superanimal
    plain = analysis.normalise({"model": MOUSE})
    named = {"model_name": "hrnet_w32", "detector_name": "fasterrcnn_resnet50_fpn_v2"}
    assert plain == analysis.normalise({"model": MOUSE, **named})
    for wrong in ({"model": MOUSE, "model_name": "dlcrnet"}, {"model": "openfield"}, {}):
        with pytest.raises(BadRequestError):
            analysis.normalise(wrong)


def test_zoo_is_that_of_deeplabcut() -> None:
    """Names and addresses are those that DeepLabCut downloads from."""
    import dlclibrary

    urls = Path(dlclibrary.__file__).parent / "dlcmodelzoo/modelzoo_urls_pytorch.yaml"
    theirs = {
        f"{animal}/{network}": url
        for animal, kinds in yaml.safe_load(urls.read_text()).items()
        for networks in kinds.values()
        for network, url in networks.items()
        if animal in zoo.ZOO
    }
    ours = {
        f"{animal.name}/{network}": f"{animal.repository}/{animal.file(network)}"
        for animal in zoo.ZOO.values()
        for network in (*animal.pose_models, *animal.detectors)
        if network not in animal.torchvision
    }
    assert ours == theirs


def test_an_analysis_without_its_model_is_told_which_there_are(
    storage: Storage, weights: Path
) -> None:
    """Those that it takes, by name; or that none was pushed, and how one is."""
    settings = SimpleNamespace(models_bucket=MODELS)
    context = cast(Context, SimpleNamespace(storage=storage, settings=settings))

    def told(analysis: str) -> str:
        with pytest.raises(BadRequestError, match="--arg model=NAME") as caught:
            validation.validate(context, analysis, {})
        assert caught.value.field == "args.model"
        return caught.value.message

    assert "`posedrop models push`" in told("superanimal")
    push(storage, MODELS, weights, MOUSE)
    assert told("superanimal").endswith(f"There are: {MOUSE}")
    assert "`posedrop models push`" in told("deeplabcut_2d")
