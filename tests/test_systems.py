"""What every system promises: it is built from its configuration alone, learns without validation data, is stored."""

import pytest
from tiny_llm import make_llm
from tiny_readers import TEXTS, training_studies

from rrg_utils.data.datasets import indiana
from rrg_utils.data.reports import clean
from rrg_utils.systems.llava_ta import LlavaTA, LlavaTAConfig
from rrg_utils.systems.narrative import NarrativeConfig, NarrativeVLM
from rrg_utils.systems.r2gencsr import R2GenCSR, R2GenCSRConfig
from rrg_utils.systems.radscr import RadSCR, RadSCRConfig
from rrg_utils.systems.sentence_library import SentenceLibrary

SYSTEMS = {
    NarrativeVLM: NarrativeConfig(align_studies=0, epochs=1),
    R2GenCSR: R2GenCSRConfig(align_studies=0, epochs=1, pairs=1),
    LlavaTA: LlavaTAConfig(align_studies=0, epochs=1, model="T", wording="course"),
}


@pytest.fixture(scope="module")
def studies():
    return training_studies()


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_learns_without_validation_data_and_is_stored_in_a_new_folder(system, studies, tmp_path):
    llm = str(make_llm(tmp_path / "llm", [*TEXTS, "image: note: normal. with disease. topic: findings:"]))
    fields = SYSTEMS[system].__dict__ | {"llm": llm, "lora_rank": 2}
    model = system(type(SYSTEMS[system])(**fields))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    history = model.prepare(studies)
    assert len(history.train) == 1
    assert not history.validation
    assert any(not weight.equal(before[name]) for name, weight in model.state_dict().items())
    model.save(f"{tmp_path}/saved/here")
    again = system.load(f"{tmp_path}/saved/here")
    assert again.config == model.config
    assert all(weight.equal(model.state_dict()[name]) for name, weight in again.state_dict().items())


def test_radscr_takes_its_sentences_from_the_training_reports_of_its_configuration():
    config = RadSCRConfig(train_reports=40, k=2)
    own = SentenceLibrary.build([clean(report.findings) for report in indiana().train[:40]], 2)
    assert RadSCR(config).library.to_json() == own.to_json()
    assert len(RadSCR(RadSCRConfig(train_reports=20, k=2)).library) < len(own)
