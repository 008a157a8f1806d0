"""The picture of what tuning tried."""

import json

import pytest
from matplotlib.image import imread

from acge_lightning.errors import InputError
from acge_lightning.report.tuning import save_tuning_figure
from acge_lightning.search import Stage, Tuned
from acge_lightning.search.tune import Point

EXACT = Point((Stage(32, store="fp32"),), 0.8, 1.0, 1.0, 0.1, 1.0)
SHORT = Point((Stage(8, 40, "int8"), Stage(32, store="fp32")), 0.7, 0.9, 0.9, 0.01, 10.0)


def test_rows_and_the_file_that_they_are_written_to_give_the_same_picture(tmp_path):
    tuned = Tuned(SHORT, [EXACT, SHORT])
    points = json.loads(tuned.write(tmp_path / "funnel.json").read_text(encoding="utf-8"))["points"]
    of_rows = save_tuning_figure(tuned.to_rows(), tmp_path / "rows.png")
    of_file = save_tuning_figure(points, str(tmp_path / "file.png"))
    assert (imread(of_rows) == imread(of_file)).all()
    other = save_tuning_figure(Tuned(EXACT, [EXACT]).to_rows(), tmp_path / "other.png")
    assert imread(of_rows).shape != imread(other).shape or (imread(of_rows) != imread(other)).any()


def test_no_points_and_a_file_of_something_else_are_told(tmp_path):
    with pytest.raises(InputError, match="no points"):
        save_tuning_figure([], tmp_path / "funnel.png")
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="is kept"):
        save_tuning_figure(Tuned(EXACT, [EXACT]).to_rows(), tmp_path / "photo.png")
