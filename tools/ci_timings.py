"""Where the minutes of the last `.ci/run` went: its stages, and the slowest tests of all of them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

FOLDER = Path("runs/ci")
SHOWN = 30

print(f"{'stage':<14} {'wall s':>8} {'cpu s':>8}")
total = [0.0, 0.0]
for line in (FOLDER / "stages.txt").read_text().splitlines():
    name, wall, user, system = line.split()
    seconds = float(wall), float(user) + float(system)
    total = [total[0] + seconds[0], total[1] + seconds[1]]
    print(f"{name:<14} {seconds[0]:8.0f} {seconds[1]:8.0f}")
print(f"{'all':<14} {total[0]:8.0f} {total[1]:8.0f}\n")

tests = [
    (float(case.get("time", 0)), path.stem, f"{case.get('classname')}::{case.get('name')}")
    for path in sorted(FOLDER.glob("*.xml"))
    for case in ET.parse(path).iter("testcase")
]
for seconds, stage, name in sorted(tests, reverse=True)[:SHOWN]:
    print(f"{seconds:7.1f} s  {stage:<10} {name}")
