#!/usr/bin/env bash
# Run the whole matrices of graders and sandbox (pytest's mark `exhaustive`), which take minutes and change only with the
# code they test. A success leaves a fingerprint of that code in tests/exhaustive.sha256, to be committed.
# `tools/exhaustive.sh --if-changed` returns at once when the fingerprint holds already: that is how CI runs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=tests/exhaustive.sha256

now=$(python - <<'END_PYTHON'
import hashlib
from pathlib import Path

whole = hashlib.sha256()
for folder in ("src/priml/graders", "src/priml/sandbox", "tests/graders", "tests/sandbox"):
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            whole.update(f"{path.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
print(whole.hexdigest())
END_PYTHON
)
if [[ ${1-} == --if-changed && -f $stamp && $(<$stamp) == "$now" ]]; then
    echo "exhaustive: this code has passed already ($stamp)"
    exit 0
fi
OMP_NUM_THREADS=1 pytest -n "${WORKERS:-2}" --dist worksteal -m exhaustive tests/graders tests/sandbox
echo "$now" >$stamp
