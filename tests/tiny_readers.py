"""Readers of every system with small random models in the place of trained ones: all else is the real thing."""

from pathlib import Path

import numpy as np
import pytest
from tiny_bert import make_bert
from tiny_llm import make_llm

from rrg_utils import readers
from rrg_utils.data.datasets import Films, indiana, label_vector, render_films
from rrg_utils.data.reports import Report, clean
from rrg_utils.readers import Reader
from rrg_utils.systems import contrastive, llava_ta, narrative, r2gencsr, radscr, trrg
from rrg_utils.systems.llava_ta import LlavaTA, LlavaTAConfig
from rrg_utils.systems.narrative import NarrativeConfig, NarrativeVLM
from rrg_utils.systems.r2gencsr import R2GenCSR, R2GenCSRConfig
from rrg_utils.systems.radscr import RadSCR, RadSCRConfig
from rrg_utils.systems.sentence_library import SentenceLibrary
from rrg_utils.systems.trrg import TRRG, TRRGConfig
from rrg_utils.vision import segmentation
from rrg_utils.vision.segmentation import UNet

TEXTS = [
    "The heart is enlarged. No pleural effusion. The lungs are clear.",
    "There is cardiomegaly. The lungs are clear.",
    "There is a small left pleural effusion. The heart is normal in size.",
    "There is a large right pleural effusion. No pneumothorax.",
    "There is mild scoliosis. The heart is normal in size. The lungs are clear.",
]


class Data:
    """Studies with rendered films and all fields of a data set, only few."""

    split, conspicuity, size = None, 1.0, 128

    def __init__(self, reports: list[Report], texts: list[str] | None = None) -> None:
        self.reports = reports
        self.texts = [clean(report.findings) for report in reports] if texts is None else texts
        self.films: Films = render_films(reports, self.size)
        self.labels = np.stack([label_vector(report) for report in reports])

    @property
    def images(self) -> np.ndarray:
        return self.films.images

    def __len__(self) -> int:
        return len(self.reports)


def training_studies() -> Data:
    """Six normal and six diseased training studies."""
    train = indiana().train
    normal = [report for report in train if report.normal and clean(report.findings)][:6]
    diseased = [report for report in train if label_vector(report).any() and clean(report.findings)][:6]
    return Data(normal + diseased)


def make_readers(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Reader]:
    """name -> reader, for the five systems (LLaVA-TA in three ways)."""
    (folder / "llm").mkdir()
    (folder / "bert").mkdir()
    llm = make_llm(folder / "llm", [*TEXTS, "describe the findings for the topic: organ-heart."], context=1024)
    text = str(make_bert(folder / "bert", [each.lower() for each in TEXTS]))
    train = training_studies()
    patch.setattr(readers, "load_dataset", lambda *_, **__: train)
    patch.setattr(narrative, "trained", lambda config: NarrativeVLM(config).eval())
    patch.setattr(r2gencsr, "trained", lambda config: R2GenCSR(config).eval())
    patch.setattr(trrg, "trained", lambda config: TRRG(config).eval())
    patch.setattr(contrastive, "trained", lambda config: contrastive.ImageText(config).requires_grad_(False).eval())
    patch.setattr(llava_ta, "trained", lambda config: LlavaTA(config).eval())
    patch.setattr(segmentation, "trained", lambda config: UNet(config).eval())
    patch.setattr(radscr, "trained", _radscr)
    ta = LlavaTAConfig(llm=llm, lora_rank=2)
    film_alone = {"topics": "predicted", "masks": "predicted"}
    return {
        "narrative": readers.NarrativeReader(NarrativeConfig(llm=llm, lora_rank=2), 8),
        "r2gencsr": readers.R2GenCSRReader(R2GenCSRConfig(llm=llm, pairs=2), 8),
        "trrg": readers.TRRGReader(TRRGConfig(llm=llm, text=text, queries=2, heads=2), 8),
        "llava_t": readers.LlavaReader(LlavaTAConfig(model="T", llm=llm, lora_rank=2), 6, {"topics": "predicted"}),
        "llava_ta_truth": readers.LlavaReader(ta, 6, {"topics": "truth"}),
        "llava_ta": readers.LlavaReader(ta, 6, film_alone),
        "radscr": readers.RadSCRReader(RadSCRConfig(text=text, width=16, bank=4)),
    }


def _radscr(config: RadSCRConfig) -> RadSCR:
    """Untrained, and with a shift that makes it suspect something on most films."""
    model = RadSCR(config, SentenceLibrary.build(TEXTS, k=2))
    model.settle()
    model.anatomy[:, 20:40] = True
    model.shift.fill_(3.0)
    return model.eval()
