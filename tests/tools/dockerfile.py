"""Reading a Dockerfile, as far as ours goes."""

from __future__ import annotations

import re
from pathlib import Path


def stages(path: Path) -> dict[str, dict[str, list[str]]]:
    """Instructions of each target, in their order: `{"cpu": {"RUN": ["make install"], "CMD": [...]}}`."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in re.sub(r"\\\n\s*", "", path.read_text()).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found[rest.rpartition(" AS ")[2]] = stage = {}
        elif line and word != "#":
            stage.setdefault(word, []).append(rest)
    return found
