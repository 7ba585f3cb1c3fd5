#!/usr/bin/env bash
# Make docs/page.png, the picture in the README, from the page of a finished run: tools/picture.sh runs/quickstart
# Needs chromium on the path. Only what stands at the top of the page is in the picture.
set -euo pipefail
page=$(realpath "${1:?need the folder of a finished run}")/report.html
[[ -f $page ]] || { echo "picture: found no $page, need it; first: priml report $1" >&2 && exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
chromium --headless --no-sandbox --hide-scrollbars --virtual-time-budget=20000 --window-size=1120,1145 \
    --screenshot="$PWD/docs/page.png" "file://$page" >/dev/null 2>&1
ls -l docs/page.png
