"""Image encoders and their pre-training."""

from rrg_utils.vision.encoder import Features, Swin, as_films
from rrg_utils.vision.pretrain import Detector, load_detector, load_encoder

__all__ = ["Detector", "Features", "Swin", "as_films", "load_detector", "load_encoder"]
