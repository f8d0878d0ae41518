"""How hard the phantom is: `python benchmarks/calibration.py`.

The pre-trained Swin is tuned on the films of the training split and scored on the validation split, class by class. The
phantom is calibrated so that the median AUROC lies between .80 and .97 and no class of at least 20 positives is trivial
(above .995) or hopeless (below .65). Takes some minutes; the result is written to results/benchmarks/calibration.json.
"""

import sys

import numpy as np
import torch
from common import machine, save, table
from sklearn.metrics import roc_auc_score

from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.datasets import load_dataset
from rrg_utils.training import FitOptions, fit
from rrg_utils.vision.pretrain import _collate, _loss, load_detector, predict

MEDIAN, RANGE, ENOUGH = (0.80, 0.97), (0.65, 0.995), 20


def main() -> int:
    torch.manual_seed(0)
    train, val = (load_dataset("phantom", split) for split in ("train", "val"))
    detector = load_detector()
    before = predict(detector, np.asarray(val.images))
    fit(
        detector,
        _loss,
        range(len(train)),
        collate=_collate([train.films], train.labels),
        options=FitOptions(epochs=2, batch_size=32, lr=2e-4, weight_decay=0.05),
        name="tuning on the training split",
    )
    after = predict(detector, np.asarray(val.images))
    rows = [
        {
            "class": name,
            "positives": int(truth.sum()),
            "pre-trained": round(float(roc_auc_score(truth, before[:, k])), 3),
            "tuned": round(float(roc_auc_score(truth, after[:, k])), 3),
        }
        for k, (name, truth) in enumerate(zip(ABNORMALITIES, val.labels.T, strict=True))
        if truth.any()
    ]
    print(table(rows))
    median = float(np.median([row["tuned"] for row in rows]))
    outside = [row["class"] for row in rows if row["positives"] >= ENOUGH and not RANGE[0] <= row["tuned"] <= RANGE[1]]
    held = MEDIAN[0] <= median <= MEDIAN[1] and not outside
    print(f"median {median:.3f}; outside {RANGE}: {', '.join(outside) or 'none'}; calibrated: {held}")
    save("calibration", {"machine": machine(), "median": median, "outside": outside, "calibrated": held, "rows": rows})
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
