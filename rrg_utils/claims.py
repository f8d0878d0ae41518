"""The papers' claims, what we measured for each, and the verdict that follows from it.

A notebook run writes its measurement to `results/<claim>/<profile>-seed<k>.json`; verdicts are computed from those
files, over the training seeds, and typed nowhere. A claim that does not hold here is a result like any other.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import rrg_utils
from rrg_utils.errors import RRGError
from rrg_utils.files import write_atomically
from rrg_utils.metrics.statistics import next_seed, over_seeds

RESULTS = Path(rrg_utils.__file__).resolve().parents[1] / "results"
VERDICTS = ("reproduced", "contradicted", "inconclusive", "not tested")


class Cell(NamedTuple):
    """One published number: table, row and column in `papers.yml`."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class Claim:
    """A claim of a paper. `effect` says what number decides, `direction` the sign the paper predicts for it.

    `unit` is the effect's: score points (0 to 1) unless said otherwise. `published` is the paper's own effect where it
    prints one, the first cell minus the second; its metric and data are the paper's. `not_here` says why nothing is
    measured for the claim; a measurement, once there, counts all the same.
    """

    id: str
    paper: str
    statement: str
    rests_on: str
    effect: str
    direction: int
    notebook: str = ""
    not_here: str = ""
    unit: str = "score"
    published: tuple[Cell, Cell] | None = None


@dataclass(frozen=True)
class Verdict:
    """What the recorded measurements say of a claim: effect with its 95 % interval (NaN where there is none).

    `seeds` counts training seeds; `reason` says why a claim is not tested and is empty otherwise.
    """

    effect: float
    low: float
    high: float
    verdict: str
    seeds: int
    reason: str = ""


class Rerun(NamedTuple):
    """The effect that a run of its own found, and the range (low, high) in which one more of our seeds was expected."""

    effect: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether it is as near to the kept effects as another seed would be."""
        return self.low <= self.effect <= self.high


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim(
            id="llava_ta.narrative_bias",
            paper="llava_ta",
            statement="the gain of the real film over a black one shrinks as the true prefix grows",
            rests_on="Figure 1, its shape only: we know no values of it",
            effect="slope of the gain (in nats per finding-bearing token) per true sentence given",
            direction=-1,
            notebook="03_narrative_bias",
            unit="nats per token and sentence",
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
            rests_on="RadGraph 29.4 to 34.2, F1-14 39.5 to 63.0 (second: cleaned references); masks add .1 RadGraph",
            effect="fact F1 on original references of LLaVA-T minus narrative, both with LoRA, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
            published=(
                Cell("mimic_cxr", "LLaVA-T (report)", "RadGraph F1"),
                Cell("mimic_cxr", "LLaVA-Rad", "RadGraph F1"),
            ),
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
            published=(Cell("ablation", "projector only", "TA"), Cell("ablation", "projector only", "T")),
        ),
        Claim(
            id="llava_ta.cross_domain",
            paper="llava_ta",
            statement="topics and masks transfer better to another hospital",
            rests_on="IU X-Ray, RadGraph 31.4 against 19.8 (LLaVA-Rad)",
            effect="fact F1 of LLaVA-TA minus the narrative model on the portable films, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
            published=(
                Cell("ablation", "IU X-Ray, trained on MIMIC-CXR", "TA"),
                Cell("ablation", "IU X-Ray, trained on MIMIC-CXR", "narrative"),
            ),
        ),
        Claim(
            id="llava_ta.topic_level_score",
            paper="llava_ta",
            statement="topic-level scores lie above report-level scores of the same model",
            rests_on="RadGraph 44.0 against 34.3; F1-14 77.9 (71.5 in the abstract) against 62.4",
            effect="fact F1 on cleaned references at topic level minus at report level, LLaVA-TA, over training seeds",
            direction=1,
            notebook="07_topic_decomposition",
            published=(
                Cell("mimic_cxr", "LLaVA-TA (topic)", "RadGraph F1"),
                Cell("mimic_cxr", "LLaVA-TA (report)", "RadGraph F1"),
            ),
        ),
        Claim(
            id="llava_ta.small_beats_large",
            paper="llava_ta",
            statement="a model of 7 billion weights beats one of 84 billion",
            rests_on="RadGraph 34.3 against 26.7 (Med-PaLM M), on other references",
            effect="RadGraph F1 of the smaller model minus that of the larger, on the same references",
            direction=1,
            not_here="needs an 84 B model; a reading check: the two rows are scored on different references",
            published=(
                Cell("mimic_cxr", "LLaVA-TA (report)", "RadGraph F1"),
                Cell("mimic_cxr", "Med-PaLM M", "RadGraph F1"),
            ),
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
            unit="exponent",
        ),
        Claim(
            id="r2gencsr.mamba_faster",
            paper="r2gencsr",
            statement="a Mamba encoder takes less time",
            rests_on="31.2 against 77.8 minutes (CXPMRG-Bench, phase not stated)",
            effect="log10 of the minutes with Swin over those with Mamba",
            direction=1,
            notebook="04_mamba_vs_swin",
            not_here="the paper's minutes are a GPU's; notebook 04 shows seconds on a CPU, which do not decide",
            unit="log10",
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
            unit="nats per token",
        ),
        Claim(
            id="r2gencsr.residual_helps",
            paper="r2gencsr",
            statement="the query minus its context samples tells more than the context samples as they are",
            rests_on="no number is known to us; the switch exists in the released code",
            effect="fall of the loss (in nats per finding-bearing token) from context images as they are to residuals",
            direction=1,
            notebook="05_residual_retrieval",
            unit="nats per token",
        ),
        Claim(
            id="r2gencsr.retrieval_matters",
            paper="r2gencsr",
            statement="context helps because it is chosen: diseased and normal films must differ",
            rests_on="no number; the released code draws the same films for all studies",
            effect="fall of the loss (in nats per finding-bearing token) from same-set contexts to nearest ones",
            direction=1,
            notebook="05_residual_retrieval",
            unit="nats per token",
        ),
        Claim(
            id="r2gencsr.pos_and_neg_both_needed",
            paper="r2gencsr",
            statement="diseased and normal contexts both contribute",
            rests_on="no number",
            effect="fall of the loss (in nats per finding-bearing token) from the better single sign to both signs",
            direction=1,
            notebook="05_residual_retrieval",
            unit="nats per token",
        ),
        Claim(
            id="r2gencsr.fewer_hallucinations",
            paper="r2gencsr",
            statement="context leads to fewer invented findings",
            rests_on="no number: the words of an explainer, not of the paper",
            effect="film precision with residuals of nearest contexts minus without context",
            direction=1,
            notebook="05_residual_retrieval",
        ),
        Claim(
            id="r2gencsr.context_gradient",
            paper="r2gencsr",
            statement="it matters whether gradients pass through the contexts (our question, from the code)",
            rests_on="no number: the released code stops them, the paper does not discuss it",
            effect="fall of the loss (in nats per finding-bearing token) from stopped gradients to passed ones",
            direction=1,
            notebook="05_residual_retrieval",
            unit="nats per token",
        ),
        Claim(
            id="r2gencsr.end_mark_cut",
            paper="r2gencsr",
            statement="reports cut without an end mark in training make outputs long (our question, from the code)",
            rests_on="no number: seen in the released code",
            effect="words per report trained with cut reports minus trained with whole ones",
            direction=1,
            not_here="no arm is trained on cut reports",
            unit="words",
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
            published=(Cell("ablation_mimic_cxr", "+DCI", "F1"), Cell("ablation_mimic_cxr", "BASE", "F1")),
        ),
        Claim(
            id="trrg.cmci_helps",
            paper="trrg",
            statement="cross-modal clue interaction improves the reports' disease content (+DCI to +CMCI)",
            rests_on="Table 2: MIMIC-CXR F1 .384 to .387; IU X-Ray BLEU-4 .152 to .147",
            effect="CE F1 of +DCI+CMCI minus +DCI, over training seeds",
            direction=1,
            notebook="06_clue_injection",
            published=(Cell("ablation_mimic_cxr", "+DCI+CMCI", "F1"), Cell("ablation_mimic_cxr", "+DCI", "F1")),
        ),
        Claim(
            id="trrg.dc_loss_helps",
            paper="trrg",
            statement="the disease-aware consistency loss improves the reports' disease content (+CMCI to TRRG)",
            rests_on="Table 2: MIMIC-CXR F1 .387 to .393, BLEU-4 .159 to .157",
            effect="CE F1 of TRRG minus +DCI+CMCI, over training seeds",
            direction=1,
            notebook="06_clue_injection",
            published=(Cell("ablation_mimic_cxr", "TRRG", "F1"), Cell("ablation_mimic_cxr", "+DCI+CMCI", "F1")),
        ),
        Claim(
            id="trrg.full_beats_base",
            paper="trrg",
            statement="the full system writes better disease content than BASE",
            rests_on="Table 2: MIMIC-CXR F1 .354 to .393, said to be 9.9 %, it is 11.0; IU X-Ray BLEU-4 .156 to .151",
            effect="CE F1 of TRRG minus BASE, over training seeds",
            direction=1,
            notebook="06_clue_injection",
            published=(Cell("ablation_mimic_cxr", "TRRG", "F1"), Cell("ablation_mimic_cxr", "BASE", "F1")),
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
            id="trrg.queries_manage_redundancy",
            paper="trrg",
            statement="a few learnable queries do as well as all the clue tokens",
            rests_on="no number",
            effect="CE F1 with queries minus with all words of the clues, plus 0.02 (our margin), over training seeds",
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
            rests_on="abstract (negated statements: that of the first version), no number",
            effect="recall of the rarer half of the observations of TRRG minus BASE, over training seeds",
            direction=1,
            notebook="06_clue_injection",
        ),
        Claim(
            id="trrg.sota",
            paper="trrg",
            statement="TRRG is the best system on both data sets",
            rests_on="Table 1: not in CIDEr and precision on MIMIC-CXR, and in METEOR alone on IU X-Ray",
            effect="rank in the paper's own table",
            direction=1,
            not_here="a reading check of the table, not an experiment",
            unit="rank",
        ),
        Claim(
            id="radscr.critique_helps",
            paper="radscr",
            statement="criticising proposals by counter-examples improves the reports (training and test)",
            rests_on="ablation (i): CheXbert F1 .561 to .610, CE-Abn .535 to .572",
            effect="CE-Abn of the full system minus the same without critiques, over training seeds",
            direction=1,
            notebook="08_self_critique",
            published=(
                Cell("ablation_mimic_cxr", "RadSCR", "CE-Abn"),
                Cell("ablation_mimic_cxr", "(i) no critiques", "CE-Abn"),
            ),
        ),
        Claim(
            id="radscr.critique_at_test_helps",
            paper="radscr",
            statement="critiques still help at test, when the system was trained with them",
            rests_on="ablation (ii): CheXbert F1 .545 to .610, CE-Abn .379 to .572",
            effect="CE-Abn of the full system minus the same system without critiques at test, over training seeds",
            direction=1,
            notebook="08_self_critique",
            published=(
                Cell("ablation_mimic_cxr", "RadSCR", "CE-Abn"),
                Cell("ablation_mimic_cxr", "(ii) no critiques at test", "CE-Abn"),
            ),
        ),
        Claim(
            id="radscr.neg_recovers_missed",
            paper="radscr",
            statement="the critique of false negatives recovers missed abnormalities",
            rests_on="ablation (ii) of C_Neg: CheXbert F1 .491 to .610, CE-Abn .545 to .572",
            effect="recall of what the films show, with U minus without, over training seeds",
            direction=1,
            notebook="08_self_critique",
            published=(
                Cell("ablation_mimic_cxr", "RadSCR", "CheXbert F1"),
                Cell("ablation_mimic_cxr", "(ii) no C_Neg at test", "CheXbert F1"),
            ),
        ),
        Claim(
            id="radscr.neg_alone_worse_than_all",
            paper="radscr",
            statement="removing C_Neg alone hurts more than removing all critiques (an oddity of the table)",
            rests_on="ablation (ii): CheXbert F1 .491 without C_Neg, .545 without any",
            effect="F1-rule micro-14 with no critiques at test minus with all but C_Neg, over training seeds",
            direction=1,
            notebook="08_self_critique",
            published=(
                Cell("ablation_mimic_cxr", "(ii) no critiques at test", "CheXbert F1"),
                Cell("ablation_mimic_cxr", "(ii) no C_Neg at test", "CheXbert F1"),
            ),
        ),
        Claim(
            id="radscr.prototypes_organise",
            paper="radscr",
            statement="prototypes organise the sentences of one abnormality by context",
            rests_on="ablation (iv): CE-Abn .377 to .572, RadGraph .210 to .367; CE-Organ .751 to .744",
            effect="film fact F1 with place, side and grade minus without prototypes, over training seeds",
            direction=1,
            notebook="08_self_critique",
            published=(
                Cell("ablation_mimic_cxr", "RadSCR", "RadGraph-C"),
                Cell("ablation_mimic_cxr", "(iv) no prototypes", "RadGraph-C"),
            ),
        ),
        Claim(
            id="radscr.llm_not_the_driver",
            paper="radscr",
            statement="the labels of the report survive without the language model",
            rests_on="ablation (iii): CheXbert F1 .610 and .611, CE-Abn .572 and .554",
            effect="0.02 (our margin) minus the distance in CE-Abn with and without it, over training seeds",
            direction=1,
            notebook="08_self_critique",
            not_here="our frozen language model only orders sentences, so it cannot change what they say",
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
            rests_on="no number: no row without one of them alone is known to us",
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
            published=(Cell("mimic_cxr", "RadSCR", "CheXbert F1"), Cell("mimic_cxr", "CXR-RePaiR", "CheXbert F1")),
        ),
        Claim(
            id="radscr.abnormality_regions_beat_anatomy",
            paper="radscr",
            statement="regions of abnormalities are better than anatomical ones",
            rests_on="CheXbert F1 .610 against .489 (RGRG, another system altogether)",
            effect="CE-Abn with regions by Grad-CAM minus with anatomical regions, over training seeds",
            direction=1,
            notebook="08_self_critique",
            published=(Cell("mimic_cxr", "RadSCR", "CheXbert F1"), Cell("mimic_cxr", "RGRG", "CheXbert F1")),
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
            rests_on="Acc@5 and Acc@10 against other retrieval systems, no number; none without critiques",
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
            unit="log10",
        ),
        Claim(
            id="radscr.grounding_is_the_bottleneck",
            paper="radscr",
            statement="grounding matters more than the size of the decoder",
            rests_on="CheXbert F1 .610 with 4 B weights against .621 (MAIRA-2, 7 B)",
            effect="CE-Abn lost by worse grounding minus that lost by a smaller decoder",
            direction=1,
            not_here="needs decoders of several billion weights; ours only orders sentences",
        ),
        Claim(
            id="radscr.cross_dataset",
            paper="radscr",
            statement="the system works on other hospitals' data",
            rests_on="ReXGradient and IU X-Ray, no number",
            effect="CE-Abn minus that of the nearest training report, on another hospital's films",
            direction=1,
            notebook="08_self_critique",
        ),
        Claim(
            id="llava_rad.small_model_competes",
            paper="llava_rad",
            statement="a model of 7 billion weights competes with far larger ones",
            rests_on="micro-14 57.3 against 53.6 (Med-PaLM M) and 35.5 (GPT-4V); macro-14 39.5, 39.8 and 20.4",
            effect="micro F1-14 of the smaller model minus that of the larger",
            direction=1,
            not_here="needs MIMIC-CXR and models of 7 to 84 B weights",
        ),
        Claim(
            id="llava_rad.chexprompt_agrees",
            paper="llava_rad",
            statement="GPT-4's error counts are as close to radiologists as another radiologist's",
            rests_on="mean absolute difference .55 against .71",
            effect="difference of a left-out radiologist minus that of GPT-4, in errors per report",
            direction=1,
            not_here="needs GPT-4 and the counts of physicians",
            unit="errors per report",
        ),
        Claim(
            id="llava_rad.indication_in_prompt",
            paper="llava_rad",
            statement="part of the score comes from the indication in the prompt (our question)",
            rests_on="no number: the released prompt holds the indication",
            effect="fact F1 with the indication minus without",
            direction=1,
            not_here="none of our models is shown an indication",
        ),
        Claim(
            id="common.constant_report_rivals",
            paper="common",
            statement="one fixed report reaches the BLEU-4 published for IU X-Ray (our question)",
            rests_on="TRRG .151 BLEU-4, .377 ROUGE-L",
            effect="BLEU-4 of the best constant report minus .151",
            direction=1,
            notebook="02_how_reports_are_scored",
        ),
        Claim(
            id="common.reference_cut_matters",
            paper="common",
            statement="cutting references and mapping rare words changes BLEU-4 by more than .005 (our question)",
            rests_on="no number of the papers",
            effect="largest change of BLEU-4 by such a switch minus 0.005",
            direction=1,
            notebook="02_how_reports_are_scored",
        ),
        Claim(
            id="common.seed_noise_vs_gain",
            paper="common",
            statement="published gains of .003 to .01 lie within the noise between training seeds (our question)",
            rests_on="no ablation of the papers has seeds or intervals",
            effect="standard deviation of CE F1 between training seeds, pooled over five arms, minus .01",
            direction=1,
            notebook="06_clue_injection",
        ),
    )
}


@lru_cache
def papers() -> dict:
    """The published numbers of `papers.yml`."""
    import yaml

    return yaml.safe_load((files("rrg_utils") / "papers.yml").read_text())


def published(claim_id: str) -> float | None:
    """The paper's own effect, in score points where its tables are in percent; None where it prints none."""
    wanted = claim(claim_id)
    if wanted.published is None:
        return None
    tables = papers()[wanted.paper]["tables"]
    values = [
        tables[cell.table]["rows"][cell.row][tables[cell.table]["columns"].index(cell.column)]
        for cell in wanted.published
    ]
    percent = "in %" in tables[wanted.published[0].table]["where"]
    return (values[0] - values[1]) / (100 if percent else 1)


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


def destination() -> Path:
    """The folder that measurements are written to: the one that RRG_RECORD names, else `results/`; but
    `runs/jupyter/results` from a notebook that someone has opened, since looking changes nothing that is kept.
    """
    if named := os.environ.get("RRG_RECORD"):
        return Path(named)
    opened = "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None
    return RESULTS.parent / "runs" / "jupyter" / "results" if opened else RESULTS


def record(
    claim_id: str, profile: str, seed: int, effect: float, interval: Sequence[float] | None = None, **details
) -> Path:
    """Write one measurement: the deciding effect, its interval, and whatever else a reader may want.

    The interval is over test reports. Without one the training seed is the unit: see `record_seeds` and `verdict`.
    It goes to the `destination`.
    """
    path = destination() / claim(claim_id).id / f"{profile}-seed{seed}.json"
    if not math.isfinite(effect):
        raise RRGError(f"{claim_id}, seed {seed}: an effect of {effect} is no measurement, do not record it")
    content = {"claim": claim_id, "profile": profile, "seed": seed, "effect": round(float(effect), 5)}
    if interval is not None:
        low, high = map(float, interval)
        content["interval"] = [round(low, 5), round(high, 5)]
        content["verdict"] = judge(CLAIMS[claim_id].direction, low, high)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, json.dumps(content | details, indent=1) + "\n")


def record_seeds(claim_id: str, profile: str, effects: Mapping[int, float], **details) -> list[Path]:
    """Write the effect of every training seed, {seed: effect}: `verdict` takes the interval over them."""
    if not effects:
        raise RRGError(f"{claim_id}: there is no seed to record")
    return [record(claim_id, profile, seed, effect, **details) for seed, effect in effects.items()]


def measured(claim_id: str, profile: str = "cpu", results: Path | None = None) -> list[dict]:
    """What was measured for a claim at a profile, one entry per file, in order of seed; `results` None: `RESULTS`."""
    folder = (results or RESULTS) / claim(claim_id).id
    return sorted((_read(path, claim_id) for path in folder.glob(f"{profile}-seed*.json")), key=lambda e: e["seed"])


def verdict(claim_id: str, profile: str = "cpu") -> Verdict:
    """The verdict on a claim over everything recorded for it at a profile.

    Effects without intervals are one value per training seed: Student's interval of their mean (two seeds at least).
    Those with intervals over test reports are `combined`.

    Raises RRGError for a damaged file and for files that do and do not have intervals side by side.
    """
    wanted = claim(claim_id)
    found = measured(claim_id, profile)
    if not found:
        nothing = f"run notebook {wanted.notebook[:2]}" if not wanted.not_here else wanted.not_here
        return Verdict(math.nan, math.nan, math.nan, "not tested", 0, nothing)
    intervals = [entry["interval"] for entry in found if "interval" in entry]
    if intervals and len(intervals) < len(found):
        raise RRGError(
            f"results/{claim_id} mixes {profile} files with and without an interval: "
            f"delete them and run notebook {wanted.notebook[:2]} again"
        )
    seeds, effects = len(found), [entry["effect"] for entry in found]
    if intervals:
        effect, low, high = combined([(value, *interval) for value, interval in zip(effects, intervals, strict=True)])
        seeds = seeds if seeds > 1 else _seeds_within(found[0])
    else:
        across = over_seeds(effects)
        effect, low, high = across.mean, across.low, across.high
    reason = "" if not math.isnan(low + high) else "one seed has no spread" if not intervals else "no interval"
    return Verdict(effect, low, high, judge(wanted.direction, low, high), seeds, reason)


def rerun(claim_id: str, profile: str = "cpu", results: Path | None = None) -> Rerun | None:
    """What another run found for a claim, with language model, projector and systems of its own.

    `results` is where it kept its measurements, of which the first seed counts; None: the committed run,
    `results/rerun`. The answer is None where that run has none, or where ours are of fewer than two training seeds and
    nothing can be expected of one more.
    """
    ours = [entry["effect"] for entry in measured(claim_id, profile)]
    theirs = [entry["effect"] for entry in measured(claim_id, profile, results or RESULTS / "rerun")]
    if not theirs or len(ours) < 2:
        return None
    return Rerun(theirs[0], *next_seed(ours))


def arms(claim_id: str, profile: str = "cpu") -> dict[str, list[float]]:
    """The deciding score of every arm, one value per training seed; empty where none are kept.

    Every file in `results/` holds those of the run that wrote it: the run over most seeds counts.
    """
    found = [entry["arms"] for entry in measured(claim_id, profile) if entry.get("arms")]
    return max(found, key=lambda each: max(map(len, each.values())), default={})


def beside_kept(claim_id: str, here: Sequence[float], profile: str = "cpu") -> str:
    """Two lines for a notebook that trains few seeds: the claim, then its own effect (the mean; none: not measured)
    beside the verdict over the seeds in `results/`. A single seed also beside where one more was expected."""
    kept = verdict(claim_id, profile)
    told = kept.reason or f"{kept.verdict}, {kept.effect:+.3f} [{kept.low:+.3f}, {kept.high:+.3f}]"
    seeds = f" ({kept.seeds} seed{'s' * (kept.seeds > 1)})" if kept.seeds else ""
    own = f"here {sum(here) / len(here):+.3f}" if len(here) else "not measured here"
    if len(here) == 1 and len(effects := [entry["effect"] for entry in measured(claim_id, profile)]) > 1:
        low, high = next_seed(effects)
        own += f", {'' if low <= here[0] <= high else 'not '}within {low:+.4f} to {high:+.4f} (one more seed)"
    return f"{claim(claim_id).statement}\n    {own}; in results/: {told}{seeds}"


def combined(found: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Effect and interval from those of several training seeds, (effect, low, high) over the same test reports each.

    One seed counts as it stands. Several get their mean and the half-width sqrt(t^2 + r^2), t Student's over the seeds
    and r the mean half-width over reports. That sum is ours: the test reports are the same for every seed, so more
    seeds make t smaller and not r.
    """
    if len(found) == 1:
        return found[0]
    across = over_seeds([effect for effect, _, _ in found])
    over_reports = sum(high - low for _, low, high in found) / (2 * len(found))
    half = math.hypot((across.high - across.low) / 2, over_reports)
    return across.mean, across.mean - half, across.mean + half


def _seeds_within(entry: dict) -> int:
    """The number of training seeds that an entry already holds: a list of them, or how many of each system."""
    inside = entry.get("seeds", 1)
    return min(inside.values()) if isinstance(inside, dict) else len(inside) if isinstance(inside, list) else inside


def _read(path: Path, claim_id: str) -> dict:
    """One result file, checked."""
    try:
        entry = json.loads(path.read_text())
        if entry["claim"] != claim_id:
            raise ValueError(f"it is of {entry['claim']}")
        if not math.isfinite(entry["effect"]) or not isinstance(entry["seed"], int):
            raise ValueError("no effect or no seed")
        if "interval" in entry:
            low, high = entry["interval"]
            if low > high:
                raise ValueError("its interval is upside down")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RRGError(
            f"results/{claim_id}/{path.name} is damaged ({type(error).__name__}: {error}): "
            f"delete it and run notebook {CLAIMS[claim_id].notebook[:2]} again"
        ) from None
    return entry
