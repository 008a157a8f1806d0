"""Stages: which ones are refused, and which are the default."""

import pytest

from acge_lightning.errors import InputError
from acge_lightning.search import Stage
from acge_lightning.search.stages import check_stages, default_stages


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([], "each must have more dims"),
        ([Stage(16), Stage(8)], "each must have more dims"),
        ([Stage(8), Stage(32)], "the vectors have 16"),
        ([Stage(4, 10), Stage(8, 20), Stage(16)], "none may be longer"),
        ([Stage(8), Stage(16, index="hnsw")], "only the first stage"),
        ([Stage(8), Stage(16, store="binary")], "the last stage"),
        ([Stage(4), Stage(16)], r"not trained for prefixes of \[4\] dims .*trained for \[8, 16\].*force"),
    ],
)
def test_stages_that_make_no_funnel(stages, told):
    with pytest.raises(InputError, match=told):
        check_stages(stages, 16, [8], force=False)


@pytest.mark.parametrize(
    "values",
    [{"dim": 0}, {"dim": 2.5}, {"shortlist": 0}, {"store": "fp64"}, {"index": "lsh"}, {"effort": 0}, {"store": "binary"}],
)
def test_a_stage_checks_its_values(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Stage(**{"dim": 12, **values})


def test_the_default_stages():
    assert default_stages(16, [16]) == (Stage(16, store="fp32"),)
    assert [s.dim for s in default_stages(512, [512, 256, 64])] == [64, 512]
