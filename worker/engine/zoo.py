"""DeepLabCut's model zoo: a SuperAnimal and a video -> poses, as ``video_inference_superanimal``.

Imported in the child process only. The networks are DeepLabCut's own descriptions of them; of what
was pushed only the weights are read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deeplabcut.modelzoo.utils import get_super_animal_scorer
from deeplabcut.pose_estimation_pytorch.config import PoseConfig

from posedrop.analyses import Job
from posedrop.analyses.superanimal import SuperAnimalArgs
from posedrop.errors import ModelError
from posedrop.models.zoo import ZOO
from worker.engine import inference, network


def run(job: Job) -> dict[str, Any]:
    """Make the poses of a video, one animal's smoothed too, like ``engine.inference.run``.

    The columns are those of DeepLabCut: scorer, individuals (animal0 ...), bodyparts, coords; -1
    where a frame has fewer animals.

    Raises:
        ModelError: weights are missing, damaged, or hold more than weights.
        AnalysisError: codes ``no_frames``, ``bad_crop``, ``no_such_device``.
        RefusedVideoError: the video can't be decoded.
    """
    args = SuperAnimalArgs.model_validate(job.args)
    if job.model is None:
        raise ModelError("superanimal needs a model")
    folder = job.model
    part = f"{args.superanimal} {args.model_name} {args.detector_name} {args.max_individuals}"
    return inference.analyse(job, args, part, lambda device: load(folder, args, device))


def load(folder: Path, args: SuperAnimalArgs, device: str) -> network.Network:
    """Load a SuperAnimal's networks from the folder of its weights, which is only read.

    Raises:
        ModelError: a file is missing, damaged, of another network, or holds more than weights.
    """
    pose, detector = (folder / file for file in args.files)
    for file in (pose, detector):
        if not file.is_file():
            get = ZOO[args.superanimal].how_to_get([file.name])
            raise ModelError(f"the model lacks {file.name}: {get}", code="weights_missing")
    people = args.detector_name in ZOO[args.superanimal].torchvision
    config = PoseConfig.build_for_superanimal_inference(
        args.superanimal,
        model_name=args.model_name,
        detector_name=None if people else args.detector_name,
        max_individuals=args.max_individuals,
    )
    built = network.build(
        PoseConfig.from_any(network.tamed(config.to_dict())),
        network.weights_of(pose, "model"),
        network.weights_of(detector, None if people else "model"),
        1,
        device,
        people=args.detector_name if people else None,
    )
    # By the names under which DeepLabCut keeps the files that it downloads.
    files = [f"{args.superanimal}_{name}.pt" for name in (args.model_name, args.detector_name)]
    return replace(
        built,
        scorer=str(get_super_animal_scorer(args.superanimal, *files)),
        snapshot=pose.stem,
        individuals=[str(name) for name in config["metadata"]["individuals"]],
        pcutoff=0.1,  # DeepLabCut's own for these
    )
