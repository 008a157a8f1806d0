"""The small encoder of the tests with weights that are the same in every run."""

import torch

from acge_lightning.export.sentence_transformers import export
from acge_lightning.zoo.pretrained import load


def seeded(path, folder):
    """Draw the weights of a static encoder anew, by a seed, and export it to a folder."""
    encoder = load(path)
    weight = encoder.backbone.embedding.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return export(encoder, folder)
