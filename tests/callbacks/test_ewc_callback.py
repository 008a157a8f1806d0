"""EWC in training: every mode against its closed form in a plain loop, and what is refused."""

import csv
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from acge_lightning.callbacks.ewc import EWCAnchor, layer_of, summed
from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.ewc import penalty
from acge_lightning.errors import InputError

STEPS = 7


class Toy(LightningModule):
    """A small regression whose learning rate changes from step to step."""

    def __init__(self, optimizer, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2), nn.Linear(2, 2)).to(dtype)
        self.encoder[3].requires_grad_(False)  # frozen, and in the anchor
        self.unused = nn.Parameter(torch.ones(3, dtype=dtype))
        self.make = optimizer

    def training_step(self, batch):
        return (self.encoder(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        made = self.make([p for p in self.parameters() if p.requires_grad])
        schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 1 / (1 + step))
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def adamw(parameters):
    half = len(parameters) // 2
    return torch.optim.AdamW(
        [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.02}], lr=0.1, weight_decay=0.1
    )


def batches(count, dtype=torch.float32):
    rng = np.random.default_rng(3)
    return [tuple(torch.tensor(rng.normal(size=(6, width)), dtype=dtype) for width in (4, 2)) for _ in range(count)]


def an_anchor(encoder, seed=5, **meta):
    made = torch.Generator().manual_seed(seed)
    theta = {n: p.detach() + 0.3 * torch.randn(p.shape, generator=made).to(p) for n, p in encoder.named_parameters()}
    fisher = {n: 3 * torch.rand(p.shape, generator=made).to(p) for n, p in encoder.named_parameters()}
    return Anchor(theta, fisher, meta)


@pytest.fixture
def anchor(tmp_path):
    """The file of an anchor of the toy; fp64 where asked for."""

    def make(dtype=torch.float32, seed=5):
        return an_anchor(Toy(sgd, dtype).encoder, seed).save(tmp_path / f"{seed}.safetensors")

    return make


def fit(module, callbacks, count=STEPS, accumulate=1, dtype=torch.float32, **settings):
    settings = {"logger": False, "max_epochs": 1} | settings
    Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    ).fit(module, torch.utils.data.DataLoader(batches(count * accumulate, dtype), batch_size=None))
    return [p.detach().clone() for p in module.parameters()]


def by_hand(optimizer, anchor, act, accumulate=1, clip=None, dtype=torch.float32):
    """The same training in a plain loop; `act(weights, theta*, fisher, when, lrs)` is called before and after each step."""
    module = Toy(optimizer, dtype)
    made = module.configure_optimizers()
    made, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    weights = {n: p for n, p in module.encoder.named_parameters() if p.requires_grad}
    found = batches(STEPS * accumulate, dtype)
    for step in range(STEPS):
        made.zero_grad()
        for batch in found[step * accumulate : (step + 1) * accumulate]:
            (module.training_step(batch) / accumulate).backward()
        lrs = {id(p): group["lr"] for group in made.param_groups for p in group["params"]}
        before = {n: p.detach().clone() for n, p in weights.items()}
        act(step, weights, anchor, None, lrs)
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        made.step()
        act(step, weights, anchor, before, lrs)
        schedule.step()
    return [p.detach().clone() for p in module.parameters()]


def autograd_of_the_penalty(strength):
    def act(step, weights, anchor, before, lrs):
        if before is None:
            lists = [[source[n] for n in weights] for source in (weights, anchor.theta, anchor.fisher)]
            penalty(*lists, strength).backward()

    return act


def closed_form(mode, strength):
    """In NumPy, entry by entry."""

    def act(step, weights, anchor, before, lrs):
        if before is None:
            return
        for name, weight in weights.items():
            t, s, f, b = (v.detach().numpy() for v in (weight, anchor.theta[name], anchor.fisher[name], before[name]))
            eta = lrs[id(weight)]
            new = (
                (t + eta * strength * f * s) / (1 + eta * strength * f)
                if mode == "proximal"
                else b + (t - b) / (1 + strength * f)
            )
            with torch.no_grad():
                weight.copy_(torch.from_numpy(new))

    return act


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_gradient_is_that_of_the_penalty_bit_for_bit(anchor, accumulate, clip):
    file = anchor()
    mine = fit(Toy(sgd), [EWCAnchor(file, strength=0.7)], accumulate=accumulate, gradient_clip_val=clip)
    expected = by_hand(sgd, Anchor.load(file), autograd_of_the_penalty(0.7), accumulate, clip)
    plain = fit(Toy(sgd), [], accumulate=accumulate, gradient_clip_val=clip)
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("mode", ["proximal", "rate"])
def test_updates_equal_their_closed_forms(anchor, mode, optimizer):
    file, dtype = anchor(torch.float64), torch.float64
    callback = EWCAnchor(file, mode, strength=0.7)
    mine = fit(Toy(optimizer, dtype), [callback], accumulate=2, dtype=dtype, gradient_clip_val=0.5)
    expected = by_hand(optimizer, Anchor.load(file), closed_form(mode, 0.7), 2, 0.5, dtype)
    plain = fit(Toy(optimizer, dtype), [], accumulate=2, dtype=dtype, gradient_clip_val=0.5)
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(mine, expected, strict=True))
    assert max((a - b).abs().max() for a, b in zip(mine, plain, strict=True)) > 0.01


def test_the_gradient_under_adamw_too(anchor):
    file, dtype = anchor(torch.float64), torch.float64
    mine = fit(Toy(adamw, dtype), [EWCAnchor(file, strength=2)], dtype=dtype)
    expected = by_hand(adamw, Anchor.load(file), autograd_of_the_penalty(2), dtype=dtype)
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("mode", ["gradient", "proximal", "rate"])
def test_a_strength_of_nothing_changes_nothing(anchor, mode, optimizer):
    mine = fit(Toy(optimizer), [EWCAnchor(anchor(), mode, strength=0)])
    assert all(torch.equal(a, b) for a, b in zip(mine, fit(Toy(optimizer), []), strict=True))


class Bowl(LightningModule):
    """1/2 sum a (x - m)^2, whose minimum under the penalty is (a m + lambda F x*) / (a + lambda F)."""

    def __init__(self, a, m, make):
        super().__init__()
        self.encoder = nn.ParameterDict({"x": nn.Parameter(torch.zeros_like(m))})
        self.a, self.m, self.make = a, m, make

    def training_step(self, batch):
        return 0.5 * (self.a * (self.encoder["x"] - self.m).square()).sum()

    def configure_optimizers(self):
        return self.make(self.parameters())


@pytest.mark.parametrize(("mode", "strength"), [("gradient", 2.0), ("proximal", 2.0), ("proximal", 500.0)])
def test_the_optimum_of_a_quadratic_is_reached(mode, strength, tmp_path):
    a, m, star, f = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 2, 0.5], [3.0, -1, 2], [0.0, 1, -1], [1.0, 0, 2]))
    file = Anchor({"x": star}, {"x": f}, {}).save(tmp_path / "bowl.safetensors")
    module = Bowl(a, m, lambda p: torch.optim.SGD(p, lr=0.3))
    fit(module, [EWCAnchor(file, mode, strength)], 150)
    expected = (a * m + strength * f * star) / (a + strength * f)
    assert (module.encoder["x"] - expected).abs().max() < 1e-9


def test_rate_slows_adam_down_where_it_matters(tmp_path):
    """An update of the gradient would do nothing here: Adam gives it its size back."""
    m = torch.ones(2, dtype=torch.float64)
    file = Anchor({"x": 0 * m}, {"x": torch.tensor([0.0, 1.0], dtype=torch.float64)}, {}).save(tmp_path / "bowl.safetensors")
    module = Bowl(m, m, lambda p: torch.optim.Adam(p, lr=1e-3))
    fit(module, [EWCAnchor(file, "rate", 99.0)], 10)
    free, held = module.encoder["x"].tolist()
    assert free / held == pytest.approx(100, rel=0.02)


# ---- strength and several anchors


def test_strength_is_a_function_of_the_step():
    callback = EWCAnchor(__file__, strength={10: 0.0, 20: 5.0, 30: 1.0})
    assert [callback.strength(s) for s in (0, 10, 15, 20, 25, 30, 99)] == [0, 0, 2.5, 5, 3, 1, 1]


def test_the_scheduled_strength_of_each_step_is_used(anchor):
    file, dtype = anchor(torch.float64), torch.float64
    callback = EWCAnchor(file, "gradient", {1: 0.0, 5: 4.0})
    mine = fit(Toy(sgd, dtype), [callback], dtype=dtype)

    def act(step, *given):
        autograd_of_the_penalty(min(4.0, max(0.0, step - 1.0)))(step, *given)

    expected = by_hand(sgd, Anchor.load(file), act, dtype=dtype)
    assert all((a - b).abs().max() < 1e-13 for a, b in zip(mine, expected, strict=True))


@pytest.mark.parametrize("decay", [None, 0.5])
def test_several_anchors(anchor, decay):
    files = [anchor(torch.float64, seed) for seed in (5, 6, 7)]
    mine = fit(Toy(sgd, torch.float64), [EWCAnchor(files, strength=0.4, decay=decay)], dtype=torch.float64)
    anchors = [Anchor.load(file) for file in files]
    plain = Anchor({}, {}, {})

    def act(step, weights, _, before, lrs):
        if before is not None:
            return
        for place, one in enumerate(anchors):
            factor = 1.0 if decay is None else decay ** (2 - place)
            for name, weight in weights.items():
                star = (one if decay is None else anchors[-1]).theta[name]
                weight.grad += 0.4 * factor * one.fisher[name] * (weight.detach() - star)

    expected = by_hand(sgd, plain, act, dtype=torch.float64)
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(mine, expected, strict=True))


def test_added_anchors_have_the_sum_of_the_penalties():
    encoder = Toy(sgd, torch.float64).encoder
    anchors = [an_anchor(encoder, seed) for seed in range(4)]
    anchors[1].fisher["0.bias"].zero_()
    anchors[3].theta.pop("2.bias")
    one, constant = summed(anchors)
    point = an_anchor(encoder, 9).theta

    def at(anchor):
        return float(penalty(*([v[n] for n in anchor.theta] for v in (point, anchor.theta, anchor.fisher)), 1.0))

    assert at(one) + constant == pytest.approx(sum(map(at, anchors)), rel=1e-6)


# ---- the log


def test_what_is_logged(anchor, tmp_path):
    file = anchor()
    module = Toy(sgd)
    fit(module, [EWCAnchor(file, strength=0.5)], logger=CSVLogger(tmp_path, "log"), log_every_n_steps=3)
    with open(tmp_path / "log" / "version_0" / "metrics.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    logged = [row for row in rows if row["ewc/penalty"]]
    assert [int(row["step"]) for row in logged] == [3, 6, 7]
    known, expected = Anchor.load(file), 0.0
    mass = {n: float(known.fisher[n].sum()) for n, p in module.encoder.named_parameters() if p.requires_grad}
    (start,) = [row for row in rows if row["ewc/mass/0"]]
    assert float(start["ewc/mass/0"]) == pytest.approx((mass["0.weight"] + mass["0.bias"]) / sum(mass.values()))
    for name, p in module.encoder.named_parameters():
        if p.requires_grad:
            t, s, f = (v.detach().double().numpy() for v in (p, known.theta[name], known.fisher[name]))
            expected += 0.25 * (f * (t - s) ** 2).sum()
    assert float(logged[-1]["ewc/penalty"]) == pytest.approx(expected, rel=1e-5)
    pairs = [(module.encoder[0].get_parameter(n).detach(), known.theta[f"0.{n}"]) for n in ("weight", "bias")]
    moved = sum(float((t - s).square().sum()) for t, s in pairs) / sum(float(s.square().sum()) for _, s in pairs)
    assert float(logged[-1]["ewc/drift/0"]) == pytest.approx(moved**0.5, rel=1e-5)


def test_layers():
    names = ["backbone.layers.11.mlp.weight", "backbone.embedding.weight", "dense.linear.bias", "0.weight"]
    assert [layer_of(name) for name in names] == ["layers 11", "embedding", "dense", "0"]


# ---- precision and devices


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the optimizer does not step
@pytest.mark.parametrize("mode", ["gradient", "proximal", "rate"])
def test_a_step_that_the_loss_scaler_skips_is_none(mode, anchor):
    module = Toy(lambda p: torch.optim.SGD(p, lr=0.1))
    steps = []
    module.on_before_zero_grad = lambda *args: steps.append([p.detach().clone() for p in module.encoder.parameters()])
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**120))  # overflows at first
    fit(module, [EWCAnchor(anchor(), mode, 0.5)], 3, plugins=[plugin])
    assert all(torch.equal(a, b) for a, b in zip(steps[0], steps[1], strict=True))


def test_the_penalty_is_added_to_unscaled_gradients(anchor):
    file, found = anchor(), []
    for scale in (1.0, 1024.0):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        found.append(fit(Toy(sgd), [EWCAnchor(file, strength=0.7)], plugins=[plugin], gradient_clip_val=0.5))
    assert all((a - b).abs().max() < 2e-3 for a, b in zip(*found, strict=True))


def test_a_fused_optimizer_under_a_loss_scaler_is_refused(anchor):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    module = Toy(lambda p: torch.optim.AdamW(p, lr=0.1, fused=True))
    with pytest.raises(InputError, match=r"optim\.optimizer\.fused=false"):
        fit(module, [EWCAnchor(anchor())], plugins=[plugin])


def test_sharded_weights_are_refused(anchor):
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(InputError, match="FSDPStrategy divides them"):
        EWCAnchor(anchor()).setup(trainer, Toy(sgd), "fit")


@pytest.mark.heavy
@pytest.mark.parametrize("mode", ["gradient", "proximal", "rate"])
def test_two_devices_act_once(mode, anchor, tmp_path):
    """Two processes with half a batch each end where one ends with the whole of it."""
    code = f"""
import sys, torch
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
from test_ewc_callback import EWCAnchor, Toy, Trainer, batches, sgd
class Halves(Toy):
    def training_step(self, batch):
        half = slice(3 * self.global_rank, 3 * self.global_rank + 3) if self.trainer.world_size == 2 else slice(None)
        return (self.encoder(batch[0][half]) - batch[1][half]).square().mean() + 0 * self.unused.sum()
devices, out = int(sys.argv[1]), sys.argv[2]
module = Halves(sgd, torch.float64)
trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices == 2 else "auto", max_epochs=1, logger=False,
    callbacks=[EWCAnchor({str(anchor(torch.float64))!r}, {mode!r}, 0.7)], enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, use_distributed_sampler=False, gradient_clip_val=0.5, accumulate_grad_batches=2)
trainer.fit(module, torch.utils.data.DataLoader(batches(8, torch.float64), batch_size=None))
if trainer.is_global_zero:
    torch.save([p.detach() for p in module.parameters()], out)
"""
    (tmp_path / "halves.py").write_text(code)
    for devices in (1, 2):
        command = [sys.executable, str(tmp_path / "halves.py"), str(devices), str(tmp_path / f"{devices}.pt")]
        subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(one, two, strict=True))


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"anchors": "nowhere.safetensors"}, "there is no file nowhere.safetensors"),
        ({"anchors": []}, "anchors is empty"),
        ({"mode": "hessian"}, "choose gradient, proximal or rate"),
        ({"strength": -1.0}, "strength=-1.0"),
        ({"strength": {0: 1.0, 9: float("nan")}}, "strength="),
        ({"decay": 2.0}, "decay=2.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        EWCAnchor(**({"anchors": __file__} | settings))


@pytest.mark.parametrize("change", ["shape", "name", "no anchor"])
def test_an_anchor_of_another_encoder_is_refused_before_the_first_step(change, tmp_path):
    module = Toy(sgd)
    known = an_anchor(module.encoder)
    if change == "shape":
        known.theta["0.bias"] = known.theta["0.bias"][:3].clone()
        known.fisher["0.bias"] = known.fisher["0.bias"][:3].clone()
    elif change == "name":
        known.theta["head.bias"] = known.theta["0.bias"].clone()
        known.fisher["head.bias"] = known.fisher["0.bias"].clone()
    file = known.save(tmp_path / "other.safetensors")
    if change == "no anchor":
        file.write_bytes(b"something else")
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(InputError, match={"shape": r"0\.bias", "name": r"head\.bias", "no anchor": "other"}[change]):
        fit(module, [EWCAnchor(file)])
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_new_parameters_are_left_free_and_said_so(tmp_path, caplog):
    module = Toy(sgd)
    known = an_anchor(module.encoder)
    for part in (known.theta, known.fisher):
        part.pop("2.bias")
    file = known.save(tmp_path / "old.safetensors")
    fit(module, [EWCAnchor(file, strength=1e-9)])
    assert "2.bias" in caplog.text
    assert "left free" in caplog.text


def test_another_anchor_after_a_restart_is_refused(anchor):
    first, other = (EWCAnchor(anchor(seed=seed)) for seed in (5, 6))
    for callback in (first, other):
        fit(Toy(sgd), [callback], 1)
    first.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="not those that the checkpoint was trained with"):
        other.load_state_dict(first.state_dict())
