"""LLaVA-TA: prompts in the paper's order, films segmented as they should be, topics, batches, storage, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_llm import make_llm

from rrg_utils.data.anatomy import REGIONS
from rrg_utils.errors import RRGError
from rrg_utils.labels.ontology import TOPICS
from rrg_utils.labels.topics import TopicSentence
from rrg_utils.systems import llava_ta
from rrg_utils.systems.llava_ta import (
    ALWAYS,
    AREAS,
    DISEASES,
    WRONG,
    Case,
    Example,
    LlavaTA,
    LlavaTAConfig,
    area_of,
    examples,
    read_film,
    report_of,
    segmented,
)
from rrg_utils.training import FitOptions, fit
from rrg_utils.vision.features import encode
from rrg_utils.vision.pretrain import load_encoder
from rrg_utils.vision.segmentation import Masks, masked

TEXTS = [
    "The heart is enlarged. No effusion.",
    "There is a left pleural effusion. The heart is normal.",
    "The lungs are clear. No pneumothorax.",
    "describe the findings for the topic: disease-pleural effusion, organ-heart, special-devices.",
]
REFERENCE = (
    TopicSentence("organ-heart", "Heart size is normal.", "absent"),
    TopicSentence("disease-pneumothorax", "Pneumothorax is absent.", "absent"),
    TopicSentence("disease-pleural effusion", "There is a left pleural effusion.", "present"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return LlavaTAConfig(llm=make_llm(tmp_path_factory.mktemp("llm"), TEXTS), lora_rank=2)


@pytest.fixture(scope="module")
def model(config):
    return LlavaTA(config).eval()


def tokens(seed):
    return np.random.default_rng(seed).standard_normal((64, 192)).astype(np.float16)


@pytest.fixture(scope="module")
def some_cases():
    return [
        Case(tokens(k), {area: tokens(100 * k + n) for n, area in enumerate(AREAS, 1)}, REFERENCE[: k + 1])
        for k in range(3)
    ]


class Films:
    """Three films of noise with boxes for regions, in the place of a rendered data set."""

    size = 128
    texts = ("The heart is enlarged. No effusion.", "___", "The lungs are clear. There is a pacemaker.")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.integers(60, 255, (3, 128, 128), dtype=np.uint8)
        self.regions = np.zeros((3, len(REGIONS), 128, 128), bool)
        for i in range(3):
            for r in range(len(REGIONS)):
                self.regions[i, r, 16 * r : 16 * r + 20, 10 * i : 60 + 20 * i] = True
        self.films = type("Rendered", (), {"key": "noise", "images": self.images})

    def __len__(self):
        return len(self.images)


@pytest.fixture
def films(monkeypatch, tmp_path):
    """A data set of noise: what would be rendered is given, everything else is the real thing."""
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    data = Films()
    packed = np.packbits(data.regions.reshape(3, len(REGIONS), -1), axis=-1)
    predicted = np.packbits(np.roll(data.regions, 5, axis=2).reshape(3, len(REGIONS), -1), axis=-1)
    monkeypatch.setattr(llava_ta, "true_masks", lambda data: Masks(packed, 128, "boxes"))
    monkeypatch.setattr(llava_ta, "predicted_masks", lambda data, config: Masks(predicted, 128, "moved"))
    encoder = load_encoder("swin", 128)
    monkeypatch.setattr(llava_ta, "film_tokens", lambda films, *_: encode(encoder, films.images))
    return data


# --- topics and areas -------------------------------------------------------------------------------------------------


def test_every_topic_has_regions_that_films_have_or_none():
    assert set(DISEASES) | set(ALWAYS) == set(TOPICS)
    for name in TOPICS:
        assert set(area_of(name)) <= set(REGIONS)
        assert not area_of(name) or area_of(name) in AREAS
    assert any(not area_of(name) for name in TOPICS)
    with pytest.raises(RRGError, match="unknown topic 'organ-spleen'; topics are: disease-"):
        area_of("organ-spleen")


def test_a_wrong_area_shares_nothing_with_the_right_one():
    assert set(WRONG) == set(AREAS)
    assert all(other in AREAS and not set(area) & set(other) for area, other in WRONG.items())


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_have_the_papers_words_and_order(config, some_cases):
    case = some_cases[0]
    example = Example(case.seen, "", "organ-heart", case.parts["heart",])
    told = {name: LlavaTA(replace(config, model=name)).eval().prompts([example])[0] for name in llava_ta.MODELS}
    assert told["TA"].text == (
        "Given the image[16]and the segmented part[16], describe the findings for the topic: organ-heart."
    )
    assert told["T"].text == "Given the image[16], describe the findings for the topic: organ-heart."
    assert told["narrative"].text == "Given the image[16], describe the findings."
    model = LlavaTA(config).eval()
    image, part = (s for s in model.prompts([example])[0].segments if not isinstance(s, str))
    with torch.no_grad():
        for found, given in ((image, example.seen), (part, example.part)):
            expected = model.projector(torch.from_numpy(given[None]).float())[0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    course = LlavaTA(replace(config, wording="course")).eval().prompts([example])[0]
    assert course.text == "image:[16]segmented part:[16]topic: organ-heart findings:"


def test_the_true_text_before_an_answer_follows_the_prompt(config, some_cases):
    example = Example(some_cases[0].seen, "No effusion.", prefix="The heart is enlarged.")
    (prompt,) = LlavaTA(replace(config, model="narrative")).prompts([example])
    assert prompt.text == "Given the image[16], describe the findings. The heart is enlarged."


def test_a_shared_film_is_projected_once(model, some_cases, monkeypatch):
    rows = []
    forward = model.projector.forward
    monkeypatch.setattr(model.projector, "forward", lambda x: rows.append(len(x)) or forward(x))
    case = some_cases[0]
    model.prompts([Example(case.seen, "", t, case.parts[area_of(t)]) for t in ("organ-heart", "organ-lungs")] * 3)
    assert rows == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topic": None}, "the model TA writes about topics: an example has none"),
        ({"part": None}, "topic organ-heart: no tokens of the segmented film"),
    ],
)
def test_incomplete_examples_are_refused(model, some_cases, change, message):
    example = Example(some_cases[0].seen, "", "organ-heart", some_cases[0].seen)._replace(**change)
    with pytest.raises(RRGError, match=message):
        model.prompts([example])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "Rad"}, "choose from narrative, T, TA"),
        ({"masks": "half"}, "choose from true, predicted, full, random, wrong"),
        ({"topics": "best"}, "choose from truth, asserted, predicted, all, reference"),
        ({"wording": "mine"}, "choose from paper, course"),
        ({"silent": -1}, "0 or more"),
    ],
)
def test_bad_configurations_are_refused(config, change, message):
    with pytest.raises(RRGError, match=message):
        replace(config, **change)


# --- segmented films --------------------------------------------------------------------------------------------------


def test_tokens_of_a_segmented_film_come_from_that_film(config, films):
    pairs = [(0, ("heart",)), (2, ("lungs", "diaphragm")), (1, ())]
    pairs[1] = (2, area_of("disease-pleural effusion"))
    found = segmented(config, films, pairs)
    assert list(found) == pairs[:2]  # the whole film is no segment
    names = list(REGIONS)
    for (i, area), got in found.items():
        mask = films.regions[i, [names.index(name) for name in area]].any(0)
        black_outside = np.where(mask, films.images[i], 0)
        expected = encode(load_encoder("swin", 128), black_outside[None])[0]
        np.testing.assert_allclose(got.astype(float), expected.astype(float), atol=2e-2)
        whole = encode(load_encoder("swin", 128), films.images[i : i + 1])[0]
        assert np.abs(got.astype(float) - whole).max() > 0.1


def test_controls_see_something_else(config, films):
    pair = (0, ("heart",))
    found = {
        masks: segmented(replace(config, masks=masks), films, [pair])[pair].astype(float)
        for masks in ("true", "predicted", "random", "wrong")
    }
    for a in found:
        for b in found:
            assert (np.abs(found[a] - found[b]).max() > 0.05) == (a != b)
    encoder = load_encoder("swin", 128)
    wrong = films.regions[0, [list(REGIONS).index(name) for name in WRONG["heart",]]].any(0)
    expected = encode(encoder, masked(films.images[0], wrong)[None])[0]
    np.testing.assert_allclose(found["wrong"], expected.astype(float), atol=2e-2)
    assert segmented(replace(config, masks="full"), films, [pair]) == {}


def test_examples_are_one_per_topic_and_a_silent_one(config, films):
    rows = examples(replace(config, silent=1), films)
    by_film = {}
    for row in rows:
        by_film.setdefault(row.seen.tobytes(), []).append(row)
    assert len(by_film) == 2  # "___" has no topic and teaches nothing
    for own in by_film.values():
        assert [row.topic in row.named for row in own] == [True] * (len(own) - 1) + [False]
        assert own[-1].text == TOPICS[own[-1].topic].negative
        assert TOPICS[own[-1].topic].level != "organ"
        for row in own:
            assert (row.part is row.seen) == (not area_of(row.topic))
    assert not [row for row in examples(replace(config, silent=0), films) if row.topic not in row.named]
    full = examples(replace(config, masks="full"), films)
    assert all(row.part is row.seen for row in full)
    whole = examples(replace(config, model="narrative"), films)
    assert tuple(row.text for row in whole) == films.texts
    assert all(row.topic is None and row.part is None for row in whole)


def test_a_new_film_is_read_with_its_masks(model, films):
    regions = dict(zip(REGIONS, films.regions[0], strict=True))
    case = read_film(model, films.images[0], regions)
    expected = encode(load_encoder("swin", 128), masked(films.images[0], regions["heart"])[None])[0]
    np.testing.assert_allclose(case.parts["heart",].astype(float), expected.astype(float), atol=2e-2)
    assert set(case.parts) == set(AREAS)
    few = read_film(model, films.images[0], regions, ["organ-heart", "special-devices"])
    assert list(few.parts) == [("heart",)]
    with pytest.raises(RRGError, match="resize the mask"):
        read_film(model, films.images[0], {name: mask[:64, :64] for name, mask in regions.items()})
    with pytest.raises(RRGError, match="no mask of the region 'lungs', which topics need"):
        read_film(model, films.images[0], {k: v for k, v in regions.items() if k != "lungs"})


# --- which topics -----------------------------------------------------------------------------------------------------


def test_selections(config, model, some_cases):
    case = some_cases[2]
    try:
        for how, diseases in (
            ("truth", {"disease-pneumothorax", "disease-pleural effusion"}),
            ("asserted", {"disease-pleural effusion"}),
            ("all", set(DISEASES)),
        ):
            model.config = replace(config, topics=how)
            (asked,) = model.asked([case])
            assert len(asked) == len(set(asked))
            assert set(asked) == diseases | set(ALWAYS)
            levels = [TOPICS[name].level for name in asked]
            assert levels == sorted(levels, key=("organ", "disease", "special").index)
        model.config = replace(config, topics="reference")
        assert set(model.asked([case])[0]) == {told.topic for told in REFERENCE}
        assert model.asked([case._replace(reference=())]) == [[]]
    finally:
        model.config = config


def test_the_classifier_learns_which_topics_a_film_has(config):
    model = LlavaTA(replace(config, topics="predicted", lora_rank=None))
    names = [("disease-scar", "organ-heart"), ("disease-edema",)]
    rows = [Example(tokens(k % 2), "No effusion.", "organ-heart", tokens(9), names[k % 2]) for k in range(8)]
    for k, row in enumerate(rows):
        rows[k] = row._replace(seen=rows[k % 2].seen)
    fit(model, lambda m, batch: m.loss(batch), rows, options=FitOptions(epochs=30, batch_size=4, lr=1e-2))
    model._set_thresholds(rows, rows[:2])
    first, second = ({n for n in own if n in DISEASES} for own in model.asked([Case(rows[0].seen), Case(rows[1].seen)]))
    assert "disease-scar" in first
    assert "disease-edema" in second
    assert "disease-scar" not in second
    assert "disease-edema" not in first


def test_an_absent_device_is_not_reported():
    asked = ["organ-heart", "disease-edema", "special-devices"]
    report = report_of(asked, ["heart size is normal", "edema is absent.", "support devices are absent."])
    assert report.text == "heart size is normal. edema is absent."
    assert report.evidence["sentences"][2] == "support devices are absent."
    assert report.evidence["regions"] == [
        "heart",
        "lungs + heart" if area_of(asked[1]) == ("lungs", "heart") else "heart + lungs",
        "whole film",
    ]
    assert report_of([], []).text == ""


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T", "TA"])
def test_batches_write_what_each_topic_alone_writes(config, some_cases, name):
    model = LlavaTA(replace(config, model=name)).eval()
    together = model.generate(some_cases, max_new_tokens=6)
    for case, report in zip(some_cases, together, strict=True):
        (alone,) = model.generate([case], max_new_tokens=6)
        assert alone == report
        one_by_one = [
            model.write([Example(case.seen, "", topic, model._part(case, topic))], 6)[0]
            for topic in report.evidence["topics"]
        ]
        assert one_by_one == report.evidence["sentences"]


def test_the_answer_is_not_read(model, some_cases):
    changed = [
        case._replace(reference=tuple(told._replace(sentence="Scar.") for told in case.reference))
        for case in some_cases
    ]
    assert model.generate(changed, 5) == model.generate(some_cases, 5)


def test_other_films_take_the_place_of_the_real_ones(config, some_cases):
    assert llava_ta.instead(some_cases, "real", config) == some_cases
    (dark,) = encode(load_encoder("swin", 128), np.zeros((1, 128, 128), np.uint8))
    for case in llava_ta.instead(some_cases, "black", config):
        for seen in (case.seen, *case.parts.values()):
            np.testing.assert_array_equal(seen, dark)
    others = llava_ta.instead(some_cases, "another", config)
    for own, other in zip(some_cases, others, strict=True):
        assert other.reference == own.reference
        assert other.seen is not own.seen
        (source,) = (case for case in some_cases if case.seen is other.seen)
        assert other.parts is source.parts
    with pytest.raises(RRGError, match="choose from real, black, another"):
        llava_ta.instead(some_cases, "white", config)


def test_no_topics_is_an_empty_report_and_no_cases_are_no_reports(config, model, some_cases):
    model.config = replace(config, topics="reference")
    try:
        (report,) = model.generate([some_cases[0]._replace(reference=())])
        assert report == ("", {"topics": [], "sentences": [], "regions": []})
        assert model.generate([]) == []
    finally:
        model.config = config


def test_a_case_without_the_area_of_a_topic_is_refused(model, some_cases):
    with pytest.raises(RRGError, match="has no film segmented to"):
        model.generate([some_cases[0]._replace(parts={})], 3)


def test_a_topic_without_region_sees_the_whole_film_twice(model, some_cases):
    assert model._part(some_cases[0], "special-devices") is some_cases[0].seen


def test_the_narrative_model_writes_whole_reports(config, some_cases):
    model = LlavaTA(replace(config, model="narrative")).eval()
    reports = model.generate(some_cases, 5)
    assert len(reports) == 3
    assert all(report.evidence["topics"] == [] for report in reports)


# --- training and storage ---------------------------------------------------------------------------------------------


def touched(model, batch):
    model.zero_grad()
    model.loss(batch).backward()
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def test_projector_only_leaves_the_language_model_alone(config, some_cases):
    batch = [Example(c.seen, "No effusion.", "organ-heart", c.parts["heart",], ("organ-heart",)) for c in some_cases]
    assert touched(LlavaTA(replace(config, lora_rank=None)), batch) == {"projector", "classifier"}
    assert touched(LlavaTA(config), batch) == {"projector", "classifier", "language"}
    plain = [Example(c.seen, "No effusion.") for c in some_cases]
    assert touched(LlavaTA(replace(config, model="narrative", lora_rank=None)), plain) == {"projector"}


def test_with_the_language_model_frozen_only_the_part_can_tell_the_topic(config, some_cases):
    """The visual tokens of LLaVA-T are the same whatever the topic; those of LLaVA-TA are not."""
    case = some_cases[0]
    pair = [Example(case.seen, "x", t, case.parts[area_of(t)]) for t in ("organ-heart", "organ-lungs")]
    for name, same in (("T", True), ("TA", False)):
        model = LlavaTA(replace(config, model=name, lora_rank=None)).eval()
        a, b = ([s for s in p.segments if not isinstance(s, str)] for p in model.prompts(pair))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) == same


def test_heat_is_where_the_answer_depends_on_the_film(config, some_cases):
    model = LlavaTA(replace(config, lora_rank=None)).eval()
    batch = [Example(c.seen, "No effusion.", "organ-heart", c.parts["heart",]) for c in some_cases]
    heat = model.heat(batch)
    assert heat.shape == (3, 8, 8)
    assert (heat >= 0).all()
    assert (heat > 0).any()
    np.testing.assert_allclose(model.heat(batch[1:2])[0], heat[1], rtol=1e-3)


def test_what_is_saved_comes_back(config, some_cases, tmp_path):
    model = LlavaTA(config)
    batch = [Example(c.seen, "No effusion.", "organ-heart", c.parts["heart",], ("organ-heart",)) for c in some_cases]
    fit(model, lambda m, b: m.loss(b), batch, options=FitOptions(epochs=2, batch_size=4))
    model.save(tmp_path)
    again = LlavaTA.load(tmp_path)
    assert again.config == config
    assert again.mean_loss(batch) == pytest.approx(model.mean_loss(batch), abs=1e-6)
    assert again.generate(some_cases, 5) == model.generate(some_cases, 5)


def test_a_model_of_another_kind_is_named(config, tmp_path):
    LlavaTA(replace(config, model="narrative")).save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"model": "narrative"', '"model": "TA"'))
    with pytest.raises(RRGError, match="does not fit this version: see classifier"):
        LlavaTA.load(tmp_path)


def test_a_model_of_another_shape_is_named(config, tmp_path):
    LlavaTA(replace(config, lora_rank=2)).save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"lora_rank": 2', '"lora_rank": 4'))
    with pytest.raises(RRGError, match=r"does not fit its config\.json: size mismatch") as error:
        LlavaTA.load(tmp_path)
    assert "\n" not in str(error.value)
