"""The table of `acge models`."""

import pytest

from acge_lightning.commands import models
from acge_lightning.zoo.releases import RELEASES, Release


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ((), ""),
        ((512,), "512"),
        ((128, 256, 384), "128, 256, 384"),
        ((128, 256, 384, 512), "128 to 512, each 128"),
        ((32, 64, 96, 192, 384), "32, 64, 96, 192, 384"),
    ],
)
def test_prefixes_are_shortened_only_where_they_are_even(dims, words):
    assert models._prefixes(Release("org/name", "main", matryoshka_dims=dims)) == words


def test_every_release_is_listed(capsys):
    models.run()
    shown = capsys.readouterr().out
    assert all(name in shown for name in RELEASES)
    assert "NaN" not in shown
