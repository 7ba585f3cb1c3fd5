"""One program in a fresh interpreter: no zygote, no isolation here.

`main` takes, as JSON on the command line: `path` (folders of installed packages), `limits`, `code_bytes` (how much of
the standard input is the program; what follows is its own input) and `channel`: null, a file descriptor, or `stdio`
where there is no other way out of a container: then the conversation takes the place of standard input and output, and
what the program prints goes to the standard error.
"""

from __future__ import annotations

import os
from typing import Any

from . import limits, program


def main(start: dict[str, Any]) -> None:
    """Read the code, become the program."""
    program.forget_us(start["path"])
    code = program.read_exactly(0, start["code_bytes"]).decode("utf-8", "surrogatepass")
    channel = start["channel"]
    if channel == "stdio":
        channel = (os.dup(0), os.dup(1))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
    elif channel is not None:
        channel = (channel, channel)
    limits.apply(start["limits"], base_bytes=limits.address_space(), other_tasks=None)
    program.main(code, channel)
