"""The papers' claims, what we measured for each, and the verdict that follows from it.

A notebook run writes its measurement to `results/<claim>/<profile>-seed<k>.json`; verdicts are computed from those
files and typed nowhere. A claim that does not hold here is a result like any other.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import rrg_utils
from rrg_utils.errors import RRGError

RESULTS = Path(rrg_utils.__file__).resolve().parents[1] / "results"
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not tested")


@dataclass(frozen=True)
class Claim:
    """A testable claim. `effect` says what number decides, `direction` the sign the paper predicts for it."""

    id: str
    paper: str
    statement: str
    rests_on: str
    effect: str
    direction: int
    notebook: str


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim(
            id="llava_ta.narrative_bias",
            paper="llava_ta",
            statement="the gain of the real film over a black one shrinks as the true prefix grows",
            rests_on="Figure 1, its shape only: no values are printed",
            effect="slope of the gain (in nats per finding-bearing token) per true sentence given",
            direction=-1,
            notebook="03_narrative_bias",
        ),
        Claim(
            id="llava_ta.bias_reduced_by_topics",
            paper="llava_ta",
            statement="one-topic targets weaken the language prior: the model depends more on the film",
            rests_on="no number beyond the end scores",
            effect="what the real film is worth over a black one in fact F1, LLaVA-T minus narrative, over seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.topic_is_main_driver",
            paper="llava_ta",
            statement="topics alone improve the report (narrative to LLaVA-T)",
            rests_on="RadGraph 29.4 to 34.2, F1-14 39.5 to 63.0, on cleaned references; masks add .1 RadGraph",
            effect="fact F1 on original references of LLaVA-T minus narrative, both with LoRA, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.mask_neutral_full_ft",
            paper="llava_ta",
            statement="masks hardly matter when the language model is trained too",
            rests_on="RadGraph 34.2 / 34.3, F1-14 63.0 / 62.4, BLEU-4 25.7 / 24.8, ROUGE-L 41.8 / 42.6",
            effect="0.02 (our margin) minus the distance in fact F1 of LLaVA-TA and LLaVA-T, with LoRA, over seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.mask_needed_when_llm_frozen",
            paper="llava_ta",
            statement="with the language model frozen, topics fail without masks and work with them",
            rests_on="RadGraph 1.6 (LLaVA-T) and 31.1 (LLaVA-TA); 19.8 without topics",
            effect="fact F1 of LLaVA-TA minus LLaVA-T, projector only, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.cross_domain",
            paper="llava_ta",
            statement="topics and masks transfer better to another hospital",
            rests_on="IU X-Ray, RadGraph 31.4 against 19.8 (LLaVA-Rad)",
            effect="fact F1 of LLaVA-TA minus the narrative model on the portable films, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.topic_level_score",
            paper="llava_ta",
            statement="topic-level scores lie above report-level scores of the same model",
            rests_on="RadGraph 44.0 against 34.3; F1-14 77.9 (71.5 in the abstract) against 62.4",
            effect="fact F1 on cleaned references at topic level minus at report level, LLaVA-TA, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.decomposition_faithful",
            paper="llava_ta",
            statement="a report that is decomposed and joined again keeps its content",
            rests_on="BLEU-1 58.7, BLEU-4 38.0, ROUGE-L 60.8, RadGraph 67.2 against the original",
            effect="ROUGE-L of rejoined test reports against the originals, minus .608 (the paper's)",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.attention_on_missed_lesion",
            paper="llava_ta",
            statement="the model looks at a lesion even where its text misses it",
            rests_on="Figures 3 and 4, pictures",
            effect="pointing game of gradient maps on missed findings, minus that of the class's usual place",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.gt_topics_leak",
            paper="llava_ta",
            statement="disease topics taken from the truth inflate the scores (a point of the reviewers)",
            rests_on="no number: the paper has no other topics at report level",
            effect="CE F1 (macro over 14) of LLaVA-TA with true disease topics minus with predicted ones, over seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="llava_ta.cleaned_reference_inflates",
            paper="llava_ta",
            statement="cleaned references raise the score of every method (a point of the reviewers)",
            rests_on="no number: baselines are copied from papers that score original text",
            effect="fact F1 of the narrative model on cleaned minus on original references, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
        ),
        Claim(
            id="r2gencsr.mamba_linear_cost",
            paper="r2gencsr",
            statement="the cost of a Mamba encoder grows linearly with the number of image tokens",
            rests_on="abstract, no number; VMamba-B and Swin-B cost the same 15.4 GFLOPs at 224 px",
            effect="0.05 (our margin) minus the distance from 1 of the exponent of training FLOPs in tokens",
            direction=1,
            notebook="04_mamba_vs_swin",
        ),
        Claim(
            id="r2gencsr.mamba_matches_swin",
            paper="r2gencsr",
            statement="a Mamba encoder reads films as well as a Swin Transformer of its size",
            rests_on="R2GenCSR and R2GenGPT differ by at most .003 on CheXpert Plus, their context too",
            effect="macro AUROC of Mamba minus Swin's, plus 0.02 (our margin): not worse by the margin",
            direction=1,
            notebook="04_mamba_vs_swin",
        ),
        Claim(
            id="r2gencsr.context_helps",
            paper="r2gencsr",
            statement="diseased and normal context samples of other patients improve the report",
            rests_on="no ablation is known to us; on CheXpert Plus the largest gain over R2GenGPT is .003 (recall)",
            effect="fall of the loss (in nats per finding-bearing token) from no context to residuals of nearest ones",
            direction=1,
            notebook="05_residual_retrieval",
        ),
        Claim(
            id="r2gencsr.residual_helps",
            paper="r2gencsr",
            statement="the query minus its context samples tells more than the context samples as they are",
            rests_on="no number is known to us; the switch exists in the released code",
            effect="fall of the loss (in nats per finding-bearing token) from context images as they are to residuals",
            direction=1,
            notebook="05_residual_retrieval",
        ),
        Claim(
            id="trrg.contrastive_pretraining_helps",
            paper="trrg",
            statement="sentence-level contrastive pre-training improves the reports' disease content",
            rests_on="no number: stage 1 is in every row of Table 2",
            effect="CE F1 of the full system minus the same without stage 1, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.zero_shot_clues_correct",
            paper="trrg",
            statement="the three clues with the largest weights name diseases that are present",
            rests_on="Figure 4, two pictures",
            effect="recall at 3 of what the films show, minus that of always the three commonest clues",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.dci_helps",
            paper="trrg",
            statement="injecting disease clues improves the reports' disease content (BASE to +DCI)",
            rests_on="Table 2: MIMIC-CXR F1 .354 to .384; IU X-Ray BLEU-4 .156 to .152",
            effect="CE F1 of +DCI minus BASE, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.cmci_helps",
            paper="trrg",
            statement="cross-modal clue interaction improves the reports' disease content (+DCI to +CMCI)",
            rests_on="Table 2: MIMIC-CXR F1 .384 to .387; IU X-Ray BLEU-4 .152 to .147",
            effect="CE F1 of +DCI+CMCI minus +DCI, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.dc_loss_helps",
            paper="trrg",
            statement="the disease-aware consistency loss improves the reports' disease content (+CMCI to TRRG)",
            rests_on="Table 2: MIMIC-CXR F1 .387 to .393, BLEU-4 .159 to .157",
            effect="CE F1 of TRRG minus +DCI+CMCI, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.full_beats_base",
            paper="trrg",
            statement="the full system writes better disease content than BASE",
            rests_on="Table 2: MIMIC-CXR F1 .354 to .393, said to be 9.9 %, it is 11.0; IU X-Ray BLEU-4 .156 to .151",
            effect="CE F1 of TRRG minus BASE, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.any_number_of_clues",
            paper="trrg",
            statement="any number of clues can be injected: more clues than K = 3 do no harm",
            rests_on="abstract of the first version; only K = 3 is reported",
            effect="CE F1 with 5 clues minus with 3, of the same trained systems, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.more_disease_content",
            paper="trrg",
            statement="clues make reports name more of the diseases that are there",
            rests_on="Figure 4, two pictures; the price, fewer basic findings, is the authors' own limitation",
            effect="recall of abnormal observations of TRRG minus BASE, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.helps_imbalance",
            paper="trrg",
            statement="clues help against the flood of negated statements: rare diseases are named more often",
            rests_on="introduction, no number",
            effect="recall of the rarer half of the observations of TRRG minus BASE, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="radscr.critique_helps",
            paper="radscr",
            statement="criticising proposals by counter-examples improves the reports (training and test)",
            rests_on="ablation (i): CheXbert F1 .561 to .610, CE-Abn .535 to .572",
            effect="CE-Abn of the full system minus the same without critiques, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.critique_at_test_helps",
            paper="radscr",
            statement="critiques still help at test, when the system was trained with them",
            rests_on="ablation (ii): CheXbert F1 .545 to .610, CE-Abn .379 to .572",
            effect="CE-Abn of the full system minus the same system without critiques at test, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.neg_recovers_missed",
            paper="radscr",
            statement="the critique of false negatives recovers missed abnormalities",
            rests_on="ablation (ii) of C_Neg: CheXbert F1 .491 to .610, CE-Abn .545 to .572",
            effect="recall of what the films show, with U minus without, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.prototypes_organise",
            paper="radscr",
            statement="prototypes organise the sentences of one abnormality by context",
            rests_on="ablation (iv): CE-Abn .377 to .572, RadGraph .210 to .367; CE-Organ .751 to .744",
            effect="film fact F1 with place, side and grade minus without prototypes, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.llm_not_the_driver",
            paper="radscr",
            statement="the labels of the report survive without the language model",
            rests_on="ablation (iii): CheXbert F1 .610 and .611, CE-Abn .572 and .554",
            effect="0.02 (our margin) minus the distance in CE-Abn with and without it, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.more_alternatives",
            paper="radscr",
            statement="two alternatives per critique are better than one",
            rests_on="best at N_p = 2; mixed sampling lifts RadGraph precision .422 to .446",
            effect="CE-Abn with N_p = 2 minus N_p = 1, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.abn_and_img_each_help",
            paper="radscr",
            statement="C_Abn and C_Img are both needed",
            rests_on="no number: they are never removed one at a time",
            effect="CE-Abn of the full system minus the better of no C_Abn and no C_Img, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.beats_baselines",
            paper="radscr",
            statement="retrieval by criticised proposals beats retrieval by the whole film",
            rests_on="CheXbert F1 .610 against .423 (CXR-RePaiR) and .402 (X-REM)",
            effect="CE-Abn minus that of the nearest training report by encoder features, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.abnormality_regions_beat_anatomy",
            paper="radscr",
            statement="regions of abnormalities are better than anatomical ones",
            rests_on="CheXbert F1 .610 against .489 (RGRG, another system altogether)",
            effect="CE-Abn with regions by Grad-CAM minus with anatomical regions, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.weak_localisation",
            paper="radscr",
            statement="regions learned without boxes lie where the findings are",
            rests_on="VinDr-CXR, no number",
            effect="IoU with the true mask minus that of the mean mask of its class in training, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.retrieval_ranking",
            paper="radscr",
            statement="critiques put the right sentences higher",
            rests_on="Acc@5 and Acc@10, no number",
            effect="Acc@5 of discounted minus of plain similarity, over training seeds",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="radscr.no_reasoning_cost_at_test",
            paper="radscr",
            statement="critiques cost less at test than a second pass of a language model",
            rests_on="no number; a 4B decoder remains",
            effect="log10 of the seconds of a second pass over those that the critiques add",
            direction=1,
            notebook="08_self_critique",
        ),
    )
}


@lru_cache
def papers() -> dict:
    """The published numbers of `papers.yml`."""
    import yaml

    return yaml.safe_load((files("rrg_utils") / "papers.yml").read_text())


def claim(claim_id: str) -> Claim:
    """A claim by its id."""
    if claim_id not in CLAIMS:
        raise RRGError(f"unknown claim {claim_id!r}; known are: {', '.join(CLAIMS)}")
    return CLAIMS[claim_id]


def judge(direction: int, low: float, high: float) -> str:
    """Verdict on an effect whose interval is [low, high] when the paper predicts the sign `direction`.

    Reproduced when the whole interval lies on the predicted side of zero, contradicted when on the other side.
    """
    if math.isnan(low) or math.isnan(high):
        return "not tested"
    if low > high:
        raise RRGError(f"an interval from {low} to {high} is upside down")
    if low > 0 or high < 0:
        return "reproduced" if math.copysign(1, low + high) == direction else "contradicted"
    return "inconclusive"


def record(claim_id: str, profile: str, seed: int, effect: float, interval: Sequence[float], **details) -> Path:
    """Write one measurement: the deciding effect with its interval, and whatever else a reader may want."""
    path = RESULTS / claim(claim_id).id / f"{profile}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = map(float, interval)
    content = {
        "claim": claim_id,
        "profile": profile,
        "seed": seed,
        "effect": round(float(effect), 5),
        "interval": [round(low, 5), round(high, 5)],
        "verdict": judge(CLAIMS[claim_id].direction, low, high),
        **details,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
    return path


def measured(claim_id: str, profile: str = "cpu") -> list[dict]:
    """What was measured for a claim at a profile, one entry per seed."""
    folder = RESULTS / claim(claim_id).id
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{profile}-seed*.json"))]
