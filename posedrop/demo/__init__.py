"""The demo's own data: a drawn mouse whose keypoints are known, and a model that finds them."""

from pathlib import Path

#: A DeepLabCut project with one small network, as a person would push it; made by demo/train.py.
MODEL = Path(__file__).resolve().parent / "model"
