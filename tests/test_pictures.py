"""Real radiographs on disk: what each kind of file shows, and one clear line for each file that cannot be used."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from radiographs import dicom, no_rights, write_png

from rrg_utils.data.pictures import fit, read_picture
from rrg_utils.errors import RRGError


@pytest.fixture
def ramp():
    """Grey values 0..4095 of twelve bits, least at the top left."""
    return np.linspace(0, 4095, 64 * 48).round().astype(np.uint16).reshape(64, 48)


# --- PNG and JPEG -----------------------------------------------------------------------------------------------------


def test_eight_bits_are_taken_as_they_are(tmp_path):
    values = np.random.default_rng(0).integers(40, 200, (50, 40), dtype=np.uint8)
    image = read_picture(write_png(tmp_path / "a.png", values))
    assert image.dtype == np.float32
    assert np.array_equal(image, values.astype(np.float32) / 255)


def test_sixteen_bits_are_stretched(tmp_path, ramp):
    image = read_picture(write_png(tmp_path / "a.png", ramp))
    assert np.abs(image - ramp / 4095).max() < 1e-6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_colour_becomes_luminance(tmp_path, mode):
    grey = np.tile(np.repeat(np.array([0, 255], np.uint8), 24), (40, 1))
    Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
    assert np.abs(read_picture(tmp_path / "a.png") - grey / 255).max() < 0.02
    Image.fromarray(np.dstack([grey, 0 * grey, 0 * grey])).save(tmp_path / "red.png")
    assert read_picture(tmp_path / "red.png").max() == pytest.approx(0.299, abs=0.01)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_at_full_size_and_decoded_small(tmp_path, mode):
    smooth = np.add.outer(np.arange(600), np.arange(500)) / 1100 * 255
    Image.fromarray(smooth.astype(np.uint8)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    full = read_picture(tmp_path / "a.jpg")
    assert full.shape == (600, 500)
    assert np.abs(full - smooth / 255).max() < 0.03
    assert np.abs(read_picture(tmp_path / "a.jpg", 64) - fit(full, 64)).max() < 0.03


def test_the_content_decides_not_the_name(tmp_path, ramp):
    path = write_png(tmp_path / "a.png", (ramp // 16).astype(np.uint8)).rename(tmp_path / "a.dcm")
    assert read_picture(path).shape == (64, 48)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def test_monochrome2_is_shown_as_it_is_and_monochrome1_turned_over(tmp_path, ramp):
    two = read_picture(dicom(tmp_path / "two.dcm", ramp))
    assert np.abs(two - ramp / 4095).max() < 1e-6
    one = read_picture(dicom(tmp_path / "one.dcm", 4095 - ramp, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(one - two).max() < 1e-6, "the same anatomy, stored either way, looks the same"
    marked = dicom(
        tmp_path / "marked.dcm", 4095 - ramp, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"
    )
    assert np.abs(read_picture(marked) - two).max() < 1e-6, "not turned over twice"


def test_window(tmp_path, ramp):
    """PS3.3 C.11.2.1.2: black up to c - 0.5 - (w - 1) / 2, white above c - 0.5 + (w - 1) / 2, linear between."""
    image = read_picture(dicom(tmp_path / "a.dcm", ramp, WindowCenter=1000, WindowWidth=501))
    assert np.abs(image - np.clip((ramp - 749.5) / 500, 0, 1)).max() < 1e-3
    wide = read_picture(dicom(tmp_path / "b.dcm", ramp, WindowCenter=4096, WindowWidth=8193))
    assert wide.max() == pytest.approx(0.5, abs=1e-3), "a window wider than the data keeps its contrast"
    several = dicom(tmp_path / "c.dcm", ramp, WindowCenter=[1000, 9], WindowWidth=[501, 9])
    assert np.array_equal(read_picture(several), image), "the first of several windows"


def test_sigmoid_window(tmp_path, ramp):
    path = dicom(tmp_path / "a.dcm", ramp, WindowCenter=2000, WindowWidth=900, VOILUTFunction="SIGMOID")
    assert np.abs(read_picture(path) - 1 / (1 + np.exp(-4 * (ramp - 2000.0) / 900))).max() < 1e-3


def test_modality_rescale_comes_before_the_window(tmp_path, ramp):
    path = dicom(tmp_path / "a.dcm", ramp, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=1000, WindowWidth=501)
    assert np.abs(read_picture(path) - np.clip((2.0 * ramp - 100 - 749.5) / 500, 0, 1)).max() < 1e-3


def test_a_negative_slope_turns_the_picture_over_once(tmp_path, ramp):
    options = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    plain = read_picture(dicom(tmp_path / "a.dcm", ramp, **options))
    assert np.abs(plain - (4095 - ramp) / 4095).max() < 1e-6
    windowed = read_picture(dicom(tmp_path / "b.dcm", ramp, **options, WindowCenter=2048, WindowWidth=4096))
    assert np.abs(windowed - plain).max() < 1e-3


def lut(first, values, bits=16):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", [int(value) for value in values])
    return [item]


def test_voi_lut_of_an_indiana_file(tmp_path, ramp):
    """As 2,901 files of the collection: MONOCHROME1, 12 bits, a table of 1,745 entries from 1,401 on, 16 bits deep."""
    curve = np.sqrt(np.linspace(0, 1, 1745)) * 65535
    path = dicom(
        tmp_path / "a.dcm", ramp, PhotometricInterpretation="MONOCHROME1", VOILUTSequence=lut(1401, curve.round())
    )
    expected = 1 - np.sqrt(np.clip((ramp - 1401.0) / 1744, 0, 1))
    assert np.abs(read_picture(path) - expected).max() < 1e-3


def test_a_lut_that_uses_fewer_bits_than_it_declares_is_not_dark(tmp_path, ramp):
    path = dicom(tmp_path / "a.dcm", ramp, VOILUTSequence=lut(0, np.arange(4096)))
    assert np.abs(read_picture(path) - ramp / 4095).max() < 1e-6


@pytest.mark.parametrize(("stored", "allocated"), [(8, 8), (10, 16), (15, 16), (16, 16)])
def test_bit_depths(tmp_path, ramp, stored, allocated):
    values = (ramp.astype(np.uint32) * (2**stored - 1) // 4095).astype(np.uint8 if allocated == 8 else np.uint16)
    assert np.abs(read_picture(dicom(tmp_path / "a.dcm", values, bits=stored)) - ramp / 4095).max() < 2 / 255


def test_signed_values(tmp_path, ramp):
    path = dicom(tmp_path / "a.dcm", ramp.astype(np.int16) - 2048, PixelRepresentation=1)
    assert np.abs(read_picture(path) - ramp / 4095).max() < 1e-6


def test_colour_dicom(tmp_path):
    rgb = np.zeros((40, 40, 3), np.uint8)
    rgb[:, 20:] = 255, 0, 0
    image = read_picture(
        dicom(
            tmp_path / "a.dcm", rgb, bits=8, PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0
        )
    )
    assert image.shape == (40, 40)
    assert image[0, 0] == 0
    assert image[0, 30] == pytest.approx(0.299, abs=0.01)


def test_a_blank_picture_is_black_not_nan(tmp_path):
    assert np.array_equal(read_picture(dicom(tmp_path / "a.dcm", np.full((40, 40), 7, np.uint16))), np.zeros((40, 40)))


def test_run_length_encoding_needs_nothing_more(tmp_path, ramp):
    path = dicom(tmp_path / "a.dcm", ramp, compress=True)
    assert np.abs(read_picture(path) - ramp / 4095).max() < 1e-6


# --- files that cannot be used ----------------------------------------------------------------------------------------


def refused(path, message):
    with pytest.raises(RRGError) as error:
        read_picture(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert re.search(message, str(error.value)), str(error.value)


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_files(tmp_path, ramp, kind, share):
    path = tmp_path / f"a.{kind}"
    if kind == "dcm":
        dicom(path, ramp)
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "damaged picture|neither PNG|no pixel data|missing")


def test_a_damaged_middle_is_noticed(tmp_path):
    path = write_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    refused(path, "damaged picture")


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"<html>404</html>", "neither PNG, JPEG nor DICOM")])
def test_other_content(tmp_path, content, message):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    refused(path, message)


def test_an_animated_gif_is_no_radiograph(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "GIF")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    refused(tmp_path / "a.png", "neither")


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.png", "No such file")
    refused(tmp_path, "directory")


def test_file_without_permission():
    with no_rights() as root:
        path = write_png(root / "a.png", np.zeros((40, 40), np.uint8))
        path.chmod(0)
        refused(path, "Permission denied")


def test_dicom_without_pixel_data(tmp_path, ramp):
    refused(dicom(tmp_path / "a.dcm", None), "holds no pixel data")


def test_dicom_of_several_frames(tmp_path, ramp):
    refused(dicom(tmp_path / "a.dcm", np.stack([ramp, ramp]), NumberOfFrames=2), "2 frames")


def test_dicom_with_a_wrong_field(tmp_path, ramp):
    refused(dicom(tmp_path / "a.dcm", ramp, WindowCenter=1, WindowWidth=0), "damaged picture .*Window Width")


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_one_pixel(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "dcm":
        dicom(path, np.zeros((1, 1), np.uint16))
    else:
        Image.new("L", (1, 1)).save(path)
    refused(path, "1 x 1 pixels are too few")


def test_a_hundred_million_pixels_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png", compress_level=1)
    refused(tmp_path / "a.png", "10000 x 10000 pixels are too many")
    refused(dicom(tmp_path / "a.dcm", np.zeros((40, 40), np.uint16), Rows=10_000, Columns=10_000), "too many")


# --- the square film --------------------------------------------------------------------------------------------------


@given(st.integers(32, 90), st.integers(32, 90), st.sampled_from([16, 33, 64, 128]))
def test_fit_keeps_everything_and_stretches_nothing(height, width, size):
    film = fit(np.ones((height, width), np.float32), size)
    assert film.shape == (size, size)
    assert film.dtype == np.float32
    side = max(height, width)
    assert film.mean() == pytest.approx(height * width / side**2, abs=0.03)
    assert film[size // 2, size // 2] == pytest.approx(1, abs=1e-5)
    assert film.min() >= 0
    assert film.max() <= 1


def test_a_square_picture_of_that_size_is_left_alone():
    image = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    assert np.abs(fit(image, 64) - image).max() < 1e-6


def test_too_small_a_film():
    with pytest.raises(RRGError, match="size=8"):
        fit(np.zeros((40, 40), np.float32), 8)
