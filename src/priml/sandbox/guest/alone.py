"""One program in a fresh interpreter: no zygote, and no isolation but that of a container around it.

`main` takes, as JSON on the command line:

- `path`: folders of installed packages. `limits`.
- `code_bytes`: how many bytes of the conversation, else of the standard input, are the program.
- `channel`: null (no conversation), a file descriptor, or `stdio`: the conversation takes the place of standard input
  and output, and what the program prints goes to the standard error.
- `start_mark`: text that is written to the standard error before the program starts.
- `is_first`: whether this is the first process of a container and its root user. Then it gives up all rights, hides
  /proc, bounds the number of processes and installs a seccomp filter.
"""

import os
from typing import Any

from . import kernel, limits, namespaces, program, seccomp


def main(start: dict[str, Any]) -> None:
    """Read the code, become the program."""
    is_first = start.get("is_first", False)
    program.forget_us(start["path"])
    channel = start["channel"]
    if channel == "stdio":
        source, target = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
    else:
        source = target = channel
    code = program.read_exactly(0 if channel is None else source, start["code_bytes"]).decode("utf-8", "surrogatepass")
    base_bytes = limits.address_space()
    if is_first:
        namespaces.hide_processes()
        namespaces.become_nobody()
    # gVisor goes on counting this process as root's, so that nobody may have one less.
    limits.apply(start["limits"], base_bytes=base_bytes, other_tasks=-1 if is_first else None)
    if is_first:
        kernel.no_new_privileges()
        kernel.install_filter(seccomp.namespaced())
    os.write(2, start["start_mark"].encode())
    program.main(code, None if channel is None else (source, target))
