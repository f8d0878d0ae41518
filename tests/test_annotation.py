"""The annotation as a reference: observations and film facts, beside what the same reports say."""

import pytest

from rrg_utils.data import ABNORMALITIES
from rrg_utils.data.annotation import ENCODED, VISIBLE, Shown, annotated_observations, asserted_facts, film_facts
from rrg_utils.data.synthetic import caption
from rrg_utils.errors import RRGError
from rrg_utils.labels.labeller import OBSERVATIONS


def positive(report):
    return {name for name, present in annotated_observations(report).items() if present}


def test_observations(study):
    report = study("Pleural Effusion/left", "Cardiac Shadow/enlarged/mild", "Density/lung/base/left", "Scoliosis")
    assert positive(report) == {"Pleural Effusion", "Cardiomegaly", "Lung Opacity"}
    assert positive(study("normal")) == set()
    assert positive(study("Density/bone")) == set()
    assert set(ENCODED) < set(OBSERVATIONS)
    with pytest.raises(RRGError, match="was not indexed"):
        annotated_observations(study("No Indexing"))


def test_every_encoded_observation_occurs(reports):
    indexed = [r for r in reports if all(f.name != "No Indexing" for f in r.mesh)]
    assert set().union(*map(positive, indexed)) == set(ENCODED)


def test_film_facts(study):
    report = study(
        "Opacity/lung/upper lobe/right/mild", "Fractures, Bone/ribs/left", "Implanted Medical Device/aortic valve"
    )
    assert film_facts(report) == {
        Shown("opacity", "upper lobe", "right", "mild"),
        Shown("rib fracture", None, "left", None),
    }
    assert asserted_facts("Mild right upper lobe opacity. Old left rib fracture.") == film_facts(report)
    assert asserted_facts("No effusion. Lungs are clear. Clavicle fracture.") == set()


def test_visible_classes_are_classes_of_the_films():
    assert set(VISIBLE) < set(ABNORMALITIES)


def test_captions_assert_what_their_film_shows(reports):
    """The one text that says the annotation, read back: the tables of both directions fit together."""
    missed = [
        (report.id, fact.name)
        for report in reports
        for fact in film_facts(report)
        if fact.name not in {said.name for said in asserted_facts(caption(report))}
    ]
    assert len(missed) <= 0.01 * len(reports), missed[:20]
