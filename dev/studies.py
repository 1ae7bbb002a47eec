"""What the committed records of the studies say, in STUDIES.md.

``python dev/studies.py`` writes tables and sentences of ``docs/studies/*/record.json`` between the
marks of each; with a folder, such as ``fastdrop-train``, it takes records and pictures from there
first.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
PAGE, RECORDS = ROOT / "STUDIES.md", ROOT / "docs" / "studies"
PLACE = re.compile(r"(<!-- record of (\S+) -->\n).*?(<!-- end of record -->\n)", re.DOTALL)


def take(folder: Path) -> None:
    """Copy record and pictures of each study that is finished."""
    for path in sorted(folder.glob("*/record.json")):
        record = json.loads(path.read_text("utf-8"))
        target = RECORDS / path.parent.name
        if not record["finished"]:
            print(f"{path.parent.name} is not finished: left as it is")
            continue
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("record.json", *record["pictures"]):
            shutil.copyfile(path.parent / name, target / name)


def said(study: str, record: dict[str, Any]) -> str:
    """Tables, pictures and sentences of a record."""
    arguments, machine = record["arguments"], record["machine"]
    parts = [
        f"Seeds {', '.join(map(str, arguments['seeds']))}, {arguments['epochs']} epochs, threads: "
        f"{arguments['threads']}; {machine['cpu']}, {machine['logical_cpus']} logical CPUs, "
        f"{record['date'][:10]}; every figure of every epoch: "
        f"[record](docs/studies/{study}/record.json)."
    ]
    for table in record["tables"]:
        cells = tabulate(table["rows"], table["headers"], "github", disable_numparse=True)
        parts += [f"{table['title']}:", cells]
    for name, sentence in record["pictures"].items():
        parts += [f"![{study}, {Path(name).stem}](docs/studies/{study}/{name})", sentence]
    return "\n\n".join(parts)


def page(text: str) -> str:
    """The page with what the records say in its places."""

    def filled(place: re.Match[str]) -> str:
        record = json.loads((RECORDS / place[2] / "record.json").read_text("utf-8"))
        return f"{place[1]}\n{said(place[2], record)}\n\n{place[3]}"

    return PLACE.sub(filled, text)


if __name__ == "__main__":
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
