#!/usr/bin/env bash
# Run the whole matrices (pytest's mark `exhaustive`) of each area, which take minutes and change only with the code that
# they test. A success leaves a fingerprint of that code in tests/exhaustive.sha256, to be committed.
# `tools/exhaustive.sh --if-changed` passes over an area whose fingerprint holds already: that is how CI runs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=tests/exhaustive.sha256
touch $stamp

# fingerprint FOLDER...: of all their files
fingerprint() {
    python - "$@" <<'END_PYTHON'
import hashlib
import sys
from pathlib import Path

whole = hashlib.sha256()
for folder in sys.argv[1:]:
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            whole.update(f"{path.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
print(whole.hexdigest())
END_PYTHON
}

# area NAME FOLDER...: in src/priml and tests
area() {
    local name=$1 now line
    shift
    now=$(fingerprint "${@/#/src/priml/}" "${@/#/tests/}")
    line="$now  $name"
    if [[ $only_changed && $(<$stamp) == *"$line"* ]]; then
        echo "exhaustive: $name has passed already ($stamp)"
        return
    fi
    OMP_NUM_THREADS=1 pytest -n "${WORKERS:-2}" --dist worksteal -m exhaustive "${@/#/tests/}"
    { grep -v "  $name\$" $stamp || true; echo "$line"; } >$stamp.new && mv $stamp.new $stamp
}

only_changed=
if [[ ${1-} == --if-changed ]]; then only_changed=yes; fi
area "graders and sandbox" graders sandbox
area planner planner
