"""Print this machine's pip settings as `export` lines for uv, which does not read pip's configuration files."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys

NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "constraint": "UV_CONSTRAINT",
    "trusted-host": "UV_INSECURE_HOST",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}

listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
values: dict[str, str] = {}
for line in listed.stdout.splitlines():  # files come after the environment, which wins
    key, _, value = line.partition("=")
    section, _, name = key.rpartition(".")
    if name in NAMES and section in (":env:", "global", "install"):
        values.setdefault(NAMES[name], ast.literal_eval(value))
if "UV_FIND_LINKS" in values:
    values["UV_FIND_LINKS"] = ",".join(values["UV_FIND_LINKS"].split())
values["UV_INDEX_STRATEGY"] = (
    "unsafe-best-match"  # as pip does: the newest of all indexes, not the first index that has one
)
print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in values.items()))
