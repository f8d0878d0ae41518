"""RadGraph, CheXbert, RadCliQ and GREEN, scored by RadEval in an environment of its own.

Their packages and ours disagree on versions, and each fetches its model's weights on first use, so they are optional:

    python -m venv ~/radeval && ~/radeval/bin/pip install "radeval>=2.2,<3"
    export RRG_CLINICAL_PYTHON=~/radeval/bin/python

(or `pip install ".[clinical]"` where one environment can hold both). Cite the version that the signature names: RadEval
counts uncertain CheXbert labels as positive and its RadGraph F1 is that of radgraph-xl.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rrg_utils.errors import RRGError
from rrg_utils.metrics.text import check_pairs

MODEL_METRICS = ("radgraph", "f1chexbert", "radcliq", "green", "ratescore", "bertscore")
INTERPRETER = "RRG_CLINICAL_PYTHON"

# Runs in the other environment, which knows nothing of this package: texts come in on stdin as JSON, scores go out.
_SCRIPT = """
import json, sys
from importlib.metadata import version
answer, sys.stdout = sys.stdout, sys.stderr
asked = json.load(sys.stdin)
from radeval import RadEval
scores = RadEval(metrics=asked["metrics"], show_progress=False)(refs=asked["references"], hyps=asked["hypotheses"])
kept = {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}
json.dump({"scores": kept, "version": version("radeval")}, answer)
"""


@dataclass(frozen=True)
class ModelScore:
    """A score made by a model of RadEval, of all reports together."""

    name: str
    value: float
    n: int
    signature: str


def model_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = ("radgraph", "f1chexbert"),
    timeout: float | None = None,
) -> list[ModelScore]:
    """Scores of RadEval under its own names, one or more per metric.

    metrics: of `MODEL_METRICS`, or any other name that RadEval knows. timeout: seconds; None waits for ever, as the
    first use downloads weights. Raises RRGError that says what to install where RadEval or its weights are missing.
    """
    check_pairs(hypotheses, references)
    if isinstance(metrics, str) or not metrics:
        raise RRGError(f"metrics must be a list such as {MODEL_METRICS[:2]}, got {metrics!r}")
    python = os.environ.get(INTERPRETER) or sys.executable
    asked = {"metrics": list(metrics), "hypotheses": list(hypotheses), "references": list(references)}
    try:
        done = subprocess.run(
            [python, "-c", _SCRIPT], input=json.dumps(asked), capture_output=True, text=True, timeout=timeout
        )
    except OSError as error:
        raise RRGError(f"{INTERPRETER}={python}: cannot be run ({error.strerror}); name a Python interpreter") from None
    except subprocess.TimeoutExpired:
        raise RRGError(f"RadEval gave no answer in {timeout:g} s: give it longer, or fewer metrics") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        if "No module named" in last:
            missing = last.rpartition("named")[2].strip(" '")
            what = "RadEval is not installed" if missing == "radeval" else f"RadEval lacks {missing}"
            raise RRGError(
                f"{', '.join(metrics)}: {what}. Make an environment with it (python -m venv ~/radeval && "
                f"~/radeval/bin/pip install 'radeval>=2.2,<3') and set {INTERPRETER}=~/radeval/bin/python"
            )
        raise RRGError(f"RadEval failed: {last} (its models are downloaded at first use, which needs the network)")
    answer = json.loads(done.stdout)
    n = len(hypotheses)
    return [
        ModelScore(name, value, n, f"{name}|radeval:{answer['version']}|text:given|refs:1|n:{n}")
        for name, value in answer["scores"].items()
    ]
