import mmap
import os
import re
import sys
from pathlib import Path

import pytest

from priml.sandbox.guest.kernel import gather_into_huge_pages

if sys.platform != "linux":
    pytest.skip("the calls of Linux", allow_module_level=True)


OTHERS = (
    "7f0000000000-7f0000001000 r--p 00000000 08:01 12 /lib/x y.so\n"
    "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n"
)


def mapping(name: str, start: int, text: str) -> str:
    """The lines of /proc/self/maps or smaps that describe the mapping around an address."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)
    for part in parts[1:]:
        low, high = (int(x, 16) for x in part.split(" ", 1)[0].split("-"))
        if low <= start < high:
            return part
    raise AssertionError(f"no mapping in {name}")


def huge_kib(start: int) -> int:
    found = re.search(r"AnonHugePages:\s+(\d+)", mapping("smaps", start, Path("/proc/self/smaps").read_text()))
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(
    tuple(int(x) for x in re.findall(r"\d+", os.uname().release)[:2]) < (6, 1),
    reason="kernels before 6.1 cannot gather pages",
)
def test_pages_are_gathered_and_keep_their_content_whatever_lines_come_before():
    import numpy as np

    size = 8 << 20
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values = np.frombuffer(area, dtype=np.uint8)
    start = values.ctypes.data
    values[::4096] = 7
    before = huge_kib(start)
    gather_into_huge_pages(OTHERS + mapping("maps", start, Path("/proc/self/maps").read_text()))
    assert before == 0
    assert huge_kib(start) >= 4 << 10  # all of it but the ends
    assert (values[::4096] == 7).all()
    assert (values[1::4096] == 0).all()
