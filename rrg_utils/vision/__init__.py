"""Image encoders and their pre-training."""

from rrg_utils.vision.controls import CNN, ViT
from rrg_utils.vision.encoder import Features, Swin, as_films
from rrg_utils.vision.mamba import VisionMamba
from rrg_utils.vision.pretrain import Detector, load_detector, load_encoder, matched_encoders
from rrg_utils.vision.scan import selective_scan

__all__ = [
    "CNN",
    "Detector",
    "Features",
    "Swin",
    "ViT",
    "VisionMamba",
    "as_films",
    "load_detector",
    "load_encoder",
    "matched_encoders",
    "selective_scan",
]
