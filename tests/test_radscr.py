"""RadSCR: regions, library, each equation against a plain computation, what critiques change, reports, storage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import make_bert
from tiny_llm import make_llm
from torch import nn
from torch.nn import functional as F

from rrg_utils.data import ABNORMALITIES
from rrg_utils.errors import RRGError
from rrg_utils.systems import aggregate, radscr
from rrg_utils.systems.aggregate import Retrieved, chosen, ordered, write
from rrg_utils.systems.hypotheses import FINE, Hypotheses, objects, patches, union
from rrg_utils.systems.radscr import (
    Example,
    N,
    PropEncoder,
    RadSCR,
    RadSCRConfig,
    SentencePool,
    alternatives,
    discounted,
    similarity,
)
from rrg_utils.systems.sentence_library import SentenceLibrary, Statement, statements

TEXTS = [
    "The heart is enlarged. No pleural effusion. The lungs are clear.",
    "There is cardiomegaly. The lungs are clear.",
    "There is a small left pleural effusion. The heart is normal in size.",
    "There is a large right pleural effusion. No pneumothorax.",
    "Small bilateral pleural effusions. No pneumothorax.",
    "There is scarring in the left apex. The heart is normal in size.",
    "The lungs are clear. No pneumothorax or pleural effusion.",
    "There is mild scoliosis. The heart is normal in size. The lungs are clear.",
]
HEART, EFFUSION, SCAR, SCOLIOSIS = map(ABNORMALITIES.index, ("cardiomegaly", "pleural effusion", "scar", "scoliosis"))
SHOWN = [[HEART], [HEART], [EFFUSION], [EFFUSION], [EFFUSION], [SCAR], [], [SCOLIOSIS]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    text = make_bert(tmp_path_factory.mktemp("bert"), [text.lower() for text in TEXTS])
    return RadSCRConfig(text=str(text), width=16, batch_size=8, epochs=2, bank=4, composed=0)


@pytest.fixture(scope="module")
def library():
    return SentenceLibrary.build(TEXTS, k=3)


@pytest.fixture(scope="module")
def examples():
    """Films on which an abnormality is a bright patch of its own kind at a place of its own."""
    rng = np.random.default_rng(0)
    out = []
    for text, shown in zip(TEXTS, SHOWN, strict=True):
        tokens = rng.standard_normal((64, 192)).astype(np.float16)
        labels = np.zeros(N, bool)
        for of in shown:
            tokens[of : of + 3] += 4 * np.random.default_rng(of).standard_normal(192).astype(np.float16)
            labels[of] = True
        out.append(Example(tokens, labels, tuple(statements(text))))
    return out


@pytest.fixture(scope="module")
def model(config, library, examples):
    """Trained for a moment, with the thresholds of its own training films."""
    system = RadSCR(replace(config, epochs=15, lr=5e-3), library)
    system.prepare(examples * 8, examples)
    return system


# --- regions ----------------------------------------------------------------------------------------------------------


def test_captums_grad_cam_is_the_class_activation_map():
    """After average pooling and one linear layer, Grad-CAM is ReLU(w_m . V) / T at every patch (Zhou et al. 2016)."""
    torch.manual_seed(0)
    module = Hypotheses(16, 8, 4)
    v, _ = module(torch.randn(3, 16, 8))
    classes = torch.tensor([0, 5, 36])
    found = module.saliency(v, classes)
    cam = F.relu(torch.einsum("rtd,rd->rt", v, module.head.fcn.weight[classes])) / 16
    expected = F.interpolate(cam.unflatten(1, (4, 4))[:, None], scale_factor=FINE, mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert all(p.grad is None for p in module.parameters())


def test_objects_are_parts_that_stand_out():
    saliency = np.zeros((32, 32))
    saliency[4:8, 4:8] = 1.0
    saliency[20:24, 20:24] = 0.9
    saliency[10, 28] = 0.3  # below half of the peak
    found = objects(saliency)
    assert [part.mask.sum() for part in found] == [16, 16]
    assert [part.objectness for part in found] == pytest.approx([1.0, 0.9])
    assert union(found, saliency.shape).sum() == 32
    assert patches(union(found, saliency.shape)[None]).sum() == 2
    slope = np.tile(np.linspace(0.6, 1, 32), (32, 1))  # no edge anywhere: one part, and nothing around it
    assert [part.mask.all() for part in objects(slope)] == [True]


def test_where_nothing_speaks_for_a_class_the_region_is_empty():
    assert objects(np.zeros((8, 8))) == []
    assert not union([], (8, 8)).any()
    module = Hypotheses(16, 8, 4)
    assert not module.regions(torch.zeros(2, 16, 16)).any()
    assert module.regions(module.saliency(torch.zeros(0, 16, 4), torch.zeros(0, dtype=torch.long))).shape == (0, 16)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
def test_regions_hold_the_peak(seed):
    saliency = np.random.default_rng(seed).random((16, 16)) ** 4
    found = objects(saliency)
    assert union(found, saliency.shape)[np.unravel_index(saliency.argmax(), saliency.shape)] or len(found)
    assert [part.objectness for part in found] == sorted((part.objectness for part in found), reverse=True)


@pytest.mark.parametrize("bad", [np.full((4, 4), np.nan), -np.ones((4, 4)), np.ones(4)])
def test_bad_saliency_is_refused(bad):
    with pytest.raises(RRGError, match="finite and not negative"):
        objects(bad)


def test_tokens_that_are_no_square_are_refused():
    with pytest.raises(RRGError, match="15 tokens are not a square"):
        Hypotheses(15, 8, 4)


# --- library ----------------------------------------------------------------------------------------------------------


def test_statements_of_a_report():
    found = {(ABNORMALITIES[s.of], s.asserted): s.text for s in statements(TEXTS[2])}
    assert found["pleural effusion", True] == "there is a small left pleural effusion."
    assert found["cardiomegaly", False] == "the heart is normal in size."
    joined = statements("Small effusion on the left. The heart is enlarged. Large effusion on the right.")
    assert Statement(EFFUSION, True, "small effusion on the left. large effusion on the right.") in joined
    both = statements("There is cardiomegaly and a pleural effusion.")
    assert [s for s in both if s.asserted] == []  # it would bring what nobody hypothesised
    assert statements("") == []


def test_prototypes_are_clusters_of_one_polarity(library):
    assert len(library.entries(EFFUSION, True)) == 3
    own = library.entries(EFFUSION)
    assert len(set(library.prototype[own])) == 3  # k - 1 of assertions, one of denials
    for number, centre in enumerate(library.centre):
        members = np.flatnonzero(library.prototype == number)
        assert centre in members
        assert len({(library.of[i], library.asserted[i]) for i in members}) == 1
    again = SentenceLibrary.from_json(library.to_json())
    assert again.texts == library.texts
    assert all(
        np.array_equal(getattr(again, n), getattr(library, n)) for n in ("of", "asserted", "prototype", "centre")
    )


def test_a_statement_finds_its_prototype(library):
    i = library.entries(EFFUSION, True)[0]
    assert library.nearest_prototype(Statement(EFFUSION, True, library.texts[i])) == library.prototype[i]
    near = library.nearest_prototype(Statement(EFFUSION, True, "there is a large left pleural effusion."))
    assert near in library.prototype[library.entries(EFFUSION, True)]
    assert library.nearest_prototype(Statement(ABNORMALITIES.index("valve"), True, "a valve.")) is None


def test_bad_libraries_are_refused():
    with pytest.raises(RRGError, match="none of the abnormalities"):
        SentenceLibrary.build(["hello.", ""])
    with pytest.raises(RRGError, match="at least 2 prototypes"):
        SentenceLibrary.build(TEXTS, k=1)


# --- the equations ----------------------------------------------------------------------------------------------------


def test_prop_encoder_is_an_ffn_on_the_concatenation():
    torch.manual_seed(0)
    prop, v, concept, background = PropEncoder(6, 9), torch.randn(2, 9, 6), torch.randn(2, 6), torch.randn(6)
    region = torch.rand(2, 9) > 0.6
    found = prop(prop.look(v), region, concept, background)
    for row in range(2):
        hidden = []
        for n in range(9):
            f = (concept[row] if region[row, n] else background) + prop.position[n]  # F_m
            hidden.append(F.gelu(prop.first(torch.cat([v[row, n], f]))))
        hidden = torch.stack(hidden)
        expected = prop.last(torch.cat([hidden[region[row]].mean(0), hidden.mean(0)]))
        torch.testing.assert_close(found[row], expected / expected.norm())


def test_in_an_empty_region_no_concept_can_be_told_from_another():
    torch.manual_seed(0)
    prop, v = PropEncoder(6, 9), torch.randn(1, 9, 6)
    one, other = (prop(prop.look(v), torch.zeros(1, 9, dtype=torch.bool), torch.randn(1, 6), v[0, 0]) for _ in range(2))
    torch.testing.assert_close(one, other)


def test_sentence_pool_is_cross_attention_then_self_attention_pooling():
    torch.manual_seed(0)
    pool = SentencePool(5, 8, True)
    words, real = torch.randn(1, 4, 5), torch.tensor([[True, True, True, False]])
    concept, background = torch.randn(1, 8), torch.randn(8)
    x = pool.words(words[0, :3])
    q, k, v = (
        y @ w.T
        for y, w in zip(
            (x, *[torch.stack([concept[0], background])] * 2), pool.attend.in_proj_weight.chunk(3), strict=True
        )
    )
    heads = [(q[:, h : h + 2] @ k[:, h : h + 2].T / 2**0.5).softmax(-1) @ v[:, h : h + 2] for h in range(0, 8, 2)]
    x = pool.norm(x + pool.attend.out_proj(torch.cat(heads, 1)))
    weights = pool.score(x)[:, 0].softmax(0)
    expected = F.normalize(pool.last(weights @ x), dim=0)
    torch.testing.assert_close(pool(words, real, concept, background)[0], expected)
    plain = SentencePool(5, 8, False)
    torch.testing.assert_close(plain(words, real, concept, background), plain(words, real, -concept, background))


def test_similarity_with_prototypes_by_brute_force(model):
    proposals = F.normalize(torch.randn(3, 16), dim=-1)
    found = model.score(proposals)
    for r in range(3):
        for i in range(len(model.library)):
            o = model.centre[model.library.prototype[i]]
            expected = proposals[r] @ model.entry[i] + model.config.alpha1 * (proposals[r] @ o)
            torch.testing.assert_close(found[r, i], expected)
    model.config = replace(model.config, prototypes=False)
    torch.testing.assert_close(model.score(proposals), proposals @ model.entry.T)
    model.config = replace(model.config, prototypes=True)


def test_the_discount_by_hand():
    sigma, abn, img = torch.tensor([[0.9, 0.5]]), torch.tensor([[0.8, 0.1]]), torch.tensor([[0.2, 0.0]])
    torch.testing.assert_close(discounted(sigma, [abn, img], 0.25), torch.tensor([[0.65, 0.475]]))
    torch.testing.assert_close(discounted(sigma, [abn, img], 1.0), torch.tensor([[-0.1, 0.4]]))  # the order turns
    assert discounted(sigma, [], 0.25) is sigma
    p, s, o = (torch.randn(2, 4) for _ in range(3))
    torch.testing.assert_close(similarity(p, s, o, 0.5), p @ s.T + 0.5 * p @ o.T)


def test_strategies_of_sampling():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    allowed = torch.tensor([[True, True, True, False]])
    u = torch.tensor([[0.9, 0.1, 0.2, 0.95]])
    assert alternatives(scores, allowed, 2, "hard", u).tolist() == [[1, 2]]
    assert alternatives(scores, allowed, 2, "easy", u).tolist() == [[0, 2]]
    assert alternatives(scores, allowed, 2, "random", u).tolist() == [[0, 2]]
    assert alternatives(scores, allowed, 4, "mixed", u).tolist() == [[0, 1, 0, 2]]
    assert alternatives(scores, allowed, 5, "hard", u).tolist() == [[1, 2, 0, 1, 2]]  # only three are there
    with pytest.raises(RRGError, match="nothing else is there"):
        alternatives(scores, torch.zeros(1, 4, dtype=torch.bool), 1, "random", u)


# --- critiques --------------------------------------------------------------------------------------------------------


def test_c_img_sees_other_patients_and_c_abn_does_not(model, examples):
    """Changing the bank of other patients moves C_Img alone; changing a concept moves the C_Abn that puts it in."""
    of = [[SHOWN[0][0]]]
    before = model.examine(examples[:1], of)[0]
    kept = model.others.clone()
    model.others.copy_(torch.randn_like(kept))
    after = model.examine(examples[:1], of)[0]
    model.others.copy_(kept)
    assert np.abs(after.sigma_img - before.sigma_img).max() > 1e-3
    np.testing.assert_array_equal(after.sigma, before.sigma)
    np.testing.assert_array_equal(after.sigma_abn, before.sigma_abn)
    assert of[0][0] not in before.alternatives[0]
    concepts = model.concepts.detach().clone()
    with torch.no_grad():
        model.concepts[before.alternatives[0].tolist()] += 3.0
    after = model.examine(examples[:1], of)[0]
    model.concepts.data.copy_(concepts)
    assert np.abs(after.sigma_abn - before.sigma_abn).max() > 1e-3
    np.testing.assert_array_equal(after.sigma, before.sigma)
    np.testing.assert_array_equal(after.sigma_img, before.sigma_img)


def test_a_film_in_the_bank_is_not_its_own_other_patient(model, examples):
    kept = model.others.clone()
    model.others.copy_(torch.randn_like(kept))
    model.others[0] = torch.from_numpy(examples[0].seen.astype(np.float32))
    v, _ = model.see(examples[:1])
    bank = model.hypotheses(model.others)[0]
    _, others = model._img(
        model.prop.look(v),
        v,
        torch.tensor([0]),
        torch.tensor([1]),
        torch.ones(1, 64) > 0,
        (model.prop.look(bank), bank),
    )
    model.others.copy_(kept)
    assert 0 not in others[0].tolist()


def test_critiques_at_test_can_be_left_out_one_by_one(model, examples):
    config = model.config
    for names in ((), ("abn",), ("img", "neg")):
        model.config = replace(config, critiques_at_test=names)
        found = model.examine(examples[:1], [[HEART]])[0]
        assert (found.sigma_abn is not None) == ("abn" in names)
        assert (found.sigma_img is not None) == ("img" in names)
        assert (found.missed is not None) == ("neg" in names)
        parts = [x for x in (found.sigma_abn, found.sigma_img) if x is not None]
        np.testing.assert_allclose(found.discounted, found.sigma - config.alpha2 * sum(parts), atol=1e-6)
    model.config = config


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"critiques": (), "prototypes": False}, {"hypotheses", "concepts", "prop", "sentence"}),
        ({}, {"hypotheses", "concepts", "prop", "sentence"}),
    ],
)
def test_gradient_reaches_every_part_that_is_trained(config, library, examples, change, parts):
    system = RadSCR(replace(config, **change), library)
    system.loss(examples).backward()
    moved = {n.split(".")[0] for n, p in system.named_parameters() if p.grad is not None and bool(p.grad.abs().sum())}
    assert moved == parts


def test_each_term_of_the_loss_is_there(config, library, examples):
    def value(**change):
        system = RadSCR(replace(config, **change), library)
        torch.manual_seed(0)
        return float(system.loss(examples).detach())

    without = value(beta1=0.0, beta2=0.0)
    assert value(beta1=0.0) > without  # L_Neg
    assert value(beta2=0.0) > without  # L_Alt
    assert value(beta2=0.0, beta1=2.0) - without == pytest.approx(2 * (value(beta2=0.0) - without), rel=1e-3)
    assert value(critiques=()) == pytest.approx(without)
    assert value(beta1=0.0, beta2=0.0, prototypes=False) < without


def test_training_the_encoder_reaches_the_encoder(config, library, examples):
    system = RadSCR(replace(config, train_encoder=True), library)
    films = [e._replace(seen=np.full((128, 128), 40 * i, np.uint8)) for i, e in enumerate(examples[:3])]
    system.loss(films).backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum()) for p in system.encoder.parameters())


# --- reports ----------------------------------------------------------------------------------------------------------


def test_it_learns_to_say_what_films_show(model, examples):
    reports = model.generate(examples)
    right = 0
    for report, shown in zip(reports, SHOWN, strict=True):
        said = {s.of for s in statements(report.text) if s.asserted}
        right += said == set(shown)
        for line in report.evidence["sentences"]:
            assert line["text"] in report.text
            assert line["kind"] in ("Q", "U", "normal")
            if line["kind"] == "Q":
                assert 0 <= min(line["region"]) <= max(line["region"]) < 64
    assert right >= 6, [report.text for report in reports]


def test_reports_do_not_depend_on_the_batch_or_on_the_answers(model, examples):
    together = model.generate(examples)
    blind = [Example(e.seen) for e in examples[::-1]]
    assert model.generate(blind)[::-1] == together
    assert model.generate(blind[:1])[0] == together[-1]


def test_what_is_saved_comes_back(model, examples, tmp_path):
    model.save(tmp_path)
    again = RadSCR.load(tmp_path)
    assert again.config == model.config
    assert again.generate(examples) == model.generate(examples)
    torch.manual_seed(0)
    expected = float(model.loss(examples).detach())
    torch.manual_seed(0)
    assert float(again.loss(examples).detach()) == pytest.approx(expected, rel=1e-5)
    other = examples[0]._replace(
        said=tuple(statements("The heart is enlarged and pneumothorax is absent. Cardiomegaly!"))
    )
    assert torch.isfinite(again.loss([other, *examples]))  # a report that the training did not have
    with pytest.raises(RRGError, match="no RadSCR in"):
        RadSCR.load(tmp_path / "nowhere")
    (tmp_path / "radscr.json").write_text((tmp_path / "radscr.json").read_text().replace('"width": 16', '"width": 8'))
    with pytest.raises(RRGError, match="does not fit this version") as error:
        RadSCR.load(tmp_path)
    assert "\n" not in str(error.value)


def test_training_is_deterministic(config, library, examples):
    states = []
    for _ in range(2):
        system = RadSCR(config, library)
        system.prepare(examples, examples)
        states.append(system.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_no_positive_hypothesis_gives_a_normal_report(model, examples):
    shift = model.shift.clone()
    model.shift.fill_(-100)
    cut = model.cut.clone()
    model.cut.fill_(float("inf"))
    (report,) = model.generate(examples[:1])
    model.shift.copy_(shift)
    model.cut.copy_(cut)
    assert report.evidence["hypotheses"] == {}
    assert {line["kind"] for line in report.evidence["sentences"]} == {"normal"}
    assert [s for s in statements(report.text) if s.asserted] == []


def test_all_positive_has_critiques_and_nothing_to_miss(model, examples):
    shift = model.shift.clone()
    model.shift.fill_(100)
    (report,) = model.generate(examples[:1])
    found = model.examine(examples[:1])[0]
    model.shift.copy_(shift)
    assert len(found.hypotheses) == N
    assert np.isfinite(found.discounted).all()
    assert (found.alternatives != found.hypotheses[:, None]).all()
    assert not [line for line in report.evidence["sentences"] if line["kind"] == "U"]
    reasons = {line["abnormality"]: line["because"] for line in report.evidence["withdrawn"]}
    assert "valve" in reasons  # nothing is known of it


def test_hypotheses_without_sentences_or_region_are_withdrawn_with_a_reason(model, examples):
    found = model.examine(examples[:1], [[ABNORMALITIES.index("valve"), HEART]])[0]
    found.regions[0, 0] = True
    found.regions[1] = False
    q, _, withdrawn = model.retrieve(found)
    assert q == []
    assert [line["because"] for line in withdrawn] == [
        "the training reports have no sentence for it",
        "nothing on the film speaks for it: its region is empty",
    ]


def test_a_denial_that_wins_withdraws_the_hypothesis(model, examples):
    found = model.examine(examples[:1], [[EFFUSION]])[0]
    found.regions[:] = True
    denial = model.library.entries(EFFUSION, False)[0]
    found.discounted[0, denial] = 9
    q, _, withdrawn = model.retrieve(found)
    assert q == []
    assert withdrawn[0]["because"] == "a denial answers it best"
    assert withdrawn[0]["text"] == model.library.texts[denial]


# --- aggregation ------------------------------------------------------------------------------------------------------


def line(text, name="pleural effusion"):
    return {"text": text, "abnormality": name, "region": [1]}


@pytest.fixture(scope="module")
def retrieved():
    q = [line("there is a small left pleural effusion.")]
    u = [line("no pleural effusion."), line("there is mild scoliosis.", "scoliosis"), q[0]]
    return Retrieved(q, u, [])


def test_all_of_q_is_kept_and_u_only_where_it_does_not_contradict(retrieved, library):
    lines, dropped = chosen(retrieved, library)
    assert [each["text"] for each in lines if each["kind"] == "Q"] == [retrieved.q[0]["text"]]
    assert [each["text"] for each in lines if each["kind"] == "U"] == ["there is mild scoliosis."]
    assert [each["text"] for each in dropped] == ["no pleural effusion."]
    assert "contradicts Q" in dropped[0]["because"]
    assert "Pleural Effusion" in dropped[0]["because"]
    normal = [each["text"] for each in lines if each["kind"] == "normal"]
    assert "no pneumothorax or pleural effusion." not in normal  # the report says that there is one
    assert "the heart is normal in size." in normal


def test_a_language_model_orders_and_loses_nothing(retrieved, library, tmp_path):
    llm = make_llm(tmp_path, TEXTS)
    lines, _ = chosen(retrieved, library)
    (found,) = ordered([lines], llm)
    assert sorted(each["text"] for each in found) == sorted(each["text"] for each in lines)
    # by brute force: the first one is the most likely one after the beginning of a report
    from rrg_utils.language import Prompt, load_llm, prompt_loss

    model = load_llm(llm)
    means = [float(prompt_loss(model, [Prompt("findings:")], [each["text"]]).mean) for each in lines]
    assert found[0]["text"] == lines[int(np.argmin(means))]["text"]
    assert ordered([[], lines[:1]], llm) == [[], lines[:1]]
    config = RadSCRConfig(aggregate="llm", llm=llm)
    ((text, evidence),) = write([retrieved], library, config)
    assert text == " ".join(each["text"] for each in found)
    assert [each["text"] for each in evidence["sentences"]] == [each["text"] for each in found]


def test_what_a_free_language_model_keeps_is_checked(retrieved, library, tmp_path, monkeypatch):
    llm = make_llm(tmp_path, TEXTS)
    config = RadSCRConfig(aggregate="prompt", llm=llm)
    ((text, evidence),) = write([retrieved], library, config)
    assert isinstance(text, str)
    assert {"kept"} <= set(evidence["sentences"][0])
    says = "There is a small left pleural effusion. The lungs are clear."
    monkeypatch.setattr(aggregate, "generate", lambda *_, **__: [says])
    ((_, evidence),) = write([retrieved], library, config)
    kept = {each["text"]: each["kept"] for each in evidence["sentences"]}
    assert kept["there is a small left pleural effusion."]
    assert not kept["there is mild scoliosis."]
    assert "Keep every one of these sentences: there is a small left" in aggregate.instruction(evidence["sentences"])


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"critiques": ("abn", "all")}, "critiques holds 'all': choose from abn, img, neg"),
        ({"critiques_at_test": ("x",)}, "critiques_at_test holds 'x'"),
        ({"sampling": "best"}, "choose from random, hard, easy, mixed"),
        ({"aggregate": "gpt"}, "choose from template, llm, prompt"),
        ({"regions": "lung"}, "choose from cam, anatomy, film"),
        ({"n_p": 0}, "at least 1"),
        ({"k": 1}, "at least 2"),
        ({"top": 0}, "at least 1"),
        ({"temperature": 0.0}, "positive"),
        ({"encoder": "timm:resnet50"}, "heads that it lacks"),
    ],
)
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(RRGError, match=message):
        RadSCRConfig(**change)


def test_too_few_studies_are_refused(config, library, examples):
    with pytest.raises(RRGError, match="at least two real training studies"):
        RadSCR(config, library).prepare(examples[:1])


def test_what_is_decided_at_test_costs_no_training(config):
    a = replace(config, critiques_at_test=(), alpha2=0.9, top=3, aggregate="llm")
    assert radscr._at_training(a) == radscr._at_training(config)
    assert radscr._at_training(replace(config, n_p=3)) != radscr._at_training(config)


def test_regions_can_be_anatomy_or_the_whole_film(config, library, examples):
    system = RadSCR(replace(config, regions="film"), library)
    nn.init.zeros_(system.anatomy)
    assert system.examine(examples[:1], [[HEART]])[0].regions.all()
    system.config = replace(config, regions="anatomy")
    system.anatomy[5, :7] = True  # the heart
    assert np.flatnonzero(system.examine(examples[:1], [[HEART]])[0].regions[0]).tolist() == list(range(7))
