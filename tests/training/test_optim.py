"""Parameter groups and schedules."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from acge_lightning.errors import InputError
from acge_lightning.training.embedding_module import EmbeddingModule
from acge_lightning.training.masked_lm import MaskedLanguageModule
from acge_lightning.training.optim import Optim, parameter_groups
from acge_lightning.training.optimized_module import OptimizedModule


def small_model():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False), nn.Linear(2, 2))
    model[4].requires_grad_(False)
    return model


def test_matrices_decay_and_vectors_do_not_and_frozen_parameters_are_left_out():
    model = small_model()
    decayed, plain = parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(m.weight) for m in (model[0], model[1], model[3])]
    assert [id(p) for p in plain["params"]] == [id(p) for p in (model[1].bias, model[2].weight, model[2].bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_weight_decay_shrinks_matrices_only():
    model = small_model()
    before = [p.clone() for p in model.parameters()]
    optimizer = Optim(partial(torch.optim.SGD, lr=0.5), 0.2, "constant", 0.0).configure(model, 10)["optimizer"]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        factor = 1 - 0.5 * 0.2 if new.requires_grad and new.ndim > 1 else 1
        torch.testing.assert_close(new.detach(), old * factor)


def rates(schedule, warmup, steps, lr=2e-3):
    made = Optim(partial(torch.optim.AdamW, lr=lr), 0.01, schedule, warmup).configure(small_model(), steps)
    assert made["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(steps):
        seen.append([g["lr"] for g in made["optimizer"].param_groups])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert all(a == b for a, b in seen)
    return np.array(seen)[:, 0], made["optimizer"].param_groups[0]["lr"]


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 20), (0.1, 20), (0.25, 10), (0.5, 7), (1.0, 5)])
def test_linear_rises_during_warm_up_then_falls_to_zero(warmup, steps):
    warm, t = round(warmup * steps), np.arange(steps)
    expected = 2e-3 * np.where(t < warm, t / max(1, warm), (steps - t) / max(1, steps - warm))
    seen, last = rates("linear", warmup, steps)
    np.testing.assert_allclose(seen, expected, rtol=1e-12)
    assert last == 0


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 20), (0.25, 12)])
def test_cosine_rises_during_warm_up_then_follows_half_a_cosine(warmup, steps):
    warm, t = round(warmup * steps), np.arange(steps)
    expected = 2e-3 * np.where(t < warm, t / max(1, warm), (1 + np.cos(np.pi * (t - warm) / (steps - warm))) / 2)
    np.testing.assert_allclose(rates("cosine", warmup, steps)[0], expected, rtol=1e-12, atol=1e-18)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="sideways"):
        Optim(partial(torch.optim.SGD, lr=0.1), 0.0, "sideways", 0.0).configure(small_model(), 10)


# ---- clipping


class Line(OptimizedModule):
    """Steep, so that its gradient is clipped, which is then how far one step goes."""

    def save(self, folder, provenance, earlier_rows=()):
        return folder

    def __init__(self, fused):
        super().__init__()
        self.line, self.fused = nn.Linear(4, 1), fused
        nn.init.ones_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0, fused=self.fused)

    def training_step(self, batch):
        return 100 * self.line(batch).square().mean()


def one_step(fused, **settings):
    module = Line(fused)
    begin = [p.detach().clone() for p in module.parameters()]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    batch = torch.tensor([[1.0, 2.0, 3.0, -1.0]])
    Trainer(accelerator="cpu", max_steps=1, **quiet, **settings).fit(module, DataLoader([batch], batch_size=None))
    return torch.cat([(b - p.detach()).flatten() for b, p in zip(begin, module.parameters(), strict=True)])


@pytest.mark.parametrize("module", [EmbeddingModule, MaskedLanguageModule])
def test_modules_are_optimized_alike(module):
    assert issubclass(module, OptimizedModule)
    for name in ("configure_optimizers", "configure_gradient_clipping"):
        assert getattr(module, name) is getattr(OptimizedModule, name)


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_bf16_clips_a_fused_optimizer_as_any_other(algorithm):
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 0.5, "gradient_clip_algorithm": algorithm}
    fused, plain = one_step(True, **settings), one_step(False, **settings)
    torch.testing.assert_close(fused, plain)
    size = fused.abs().max() if algorithm == "value" else fused.norm()
    torch.testing.assert_close(size, torch.tensor(0.5))
    free = one_step(True, precision="bf16-mixed", gradient_clip_val=None)
    torch.testing.assert_close(free[:4], 1000 * torch.tensor([1.0, 2.0, 3.0, -1.0]), rtol=0.01, atol=0)


def test_a_fused_optimizer_whose_gradients_are_scaled_cannot_be_clipped():
    def scaled():
        return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))]

    with pytest.raises(InputError, match=r"gradient_clip_val.*fused=false"):
        one_step(True, plugins=scaled(), gradient_clip_val=0.5)
    assert one_step(False, plugins=scaled(), gradient_clip_val=0.5).norm() == pytest.approx(0.5, rel=1e-3)
