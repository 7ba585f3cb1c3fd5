"""What `pip install` gets is complete: the files that are not Python travel too."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Without hatchling here, pip fetches it for the build.
OFFLINE = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []


@pytest.mark.slow
def test_the_wheel_holds_the_report_page_and_the_laptop_example(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", *OFFLINE, "-w", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("priml-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "priml").rglob("*") if path.is_file()}
    assert {name for name in sources if "__pycache__" not in name} <= names
    assert {f"priml/laptop_math/{name}.yaml" for name in ("sft", "train", "eval")} <= names
    assert not any(name.startswith("tests/") for name in names)
