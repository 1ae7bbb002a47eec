"""In STUDIES.md stands what the committed records say."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastdrop.studies import STUDIES

ROOT = Path(__file__).parents[2]
RECORDS = sorted(ROOT.glob("docs/studies/*/record.json"))
sys.path.insert(0, str(ROOT / "dev"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_pictures_are_those_of_the_record(path):
    record = json.loads(path.read_text("utf-8"))
    assert record["finished"]
    assert record["study"] == path.parent.name
    assert {p.name for p in path.parent.glob("*.png")} == record["pictures"].keys()
    for name, sentence in record["pictures"].items():
        assert sentence.startswith(f"Data: {record['data']}. ")
        with Image.open(path.parent / name) as image:
            assert image.info["Description"] == sentence


def test_the_page_says_what_the_records_say():
    import studies

    text = studies.PAGE.read_text("utf-8")
    shown = [place[2] for place in studies.PLACE.finditer(text)]
    assert sorted(shown) == [path.parent.name for path in RECORDS]
    assert set(shown) <= STUDIES.keys()
    assert text == studies.page(text), "run python dev/studies.py"
    outside = studies.PLACE.sub("", text)
    assert not re.search(r"\d ± \d", outside)
    assert "docs/studies/" not in outside


def test_the_default_study_shows_what_dropout_is_for():
    """Not by a hair: in the end no seed without dropout is as good as any with it."""
    record = json.loads((ROOT / "docs/studies/wrong-labels/record.json").read_text("utf-8"))
    last = {name: [] for name in ("without dropout", "dropout 0.5")}
    for run in record["runs"]:
        last[run["name"]].append([c[-1] for c in (run["curves"][k] for k in CURVES)])
    without, dropped = (np.array(rows) for rows in last.values())
    assert len(without) == len(dropped) >= 5
    assert without[:, 0].max() < dropped[:, 0].min()
    gaps = [rows[:, 1] - rows[:, 0] for rows in (without, dropped)]
    assert gaps[0].min() > 0.1  # learned by heart
    share = "share of the wrong labels that is learned"
    learned = {n: [r["measures"][share] for r in record["runs"] if r["name"] == n] for n in last}
    assert min(learned["without dropout"]) > 0.9
    assert max(learned["dropout 0.5"]) < 0.5


CURVES = "validation accuracy", "train accuracy"
