"""The pull to an anchor against autograd and closed forms; anchors as files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from acge_lightning.continual.anchor import Anchor
from acge_lightning.continual.ewc import add_penalty_gradient_, merged, penalty, proximal_, rate_
from acge_lightning.errors import InputError

SHAPES = {"table": (300, 1000), "weight": (5, 7), "bias": (3,), "scalar": ()}


def tensors(seed, dtype=torch.float, low=-1.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(shape, generator=generator, dtype=torch.double) * (1 - low) + low).to(dtype) for shape in SHAPES.values()
    ]


def importance(dtype=torch.float):
    found = tensors(3, dtype, 0.0)
    found[0][10:] = 0
    found[1][0] = 1e6
    return found


def pulled(theta):
    return [x.clone() for x in theta]


def test_the_penalty_is_the_sum_written_out():
    theta, star, f = tensors(0, torch.double), tensors(1, torch.double), importance(torch.double)
    expected = sum(0.5 * 3.0 * float((c * (a - b) ** 2).sum()) for a, b, c in zip(theta, star, f, strict=True))
    assert penalty(theta, star, f, 3.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1e4])
def test_the_gradient_is_that_of_autograd_bit_for_bit(strength):
    theta, star, f = [x.requires_grad_() for x in tensors(0)], tensors(1), importance()
    penalty(theta, star, f, strength).backward()
    before = tensors(2)
    grad = pulled(before)
    add_penalty_gradient_(grad, theta, star, f, strength)
    for mine, own, x in zip(grad, before, theta, strict=True):
        assert torch.equal(mine, own + x.grad)
    assert strength == 0 or not torch.equal(grad[0], before[0])


@pytest.mark.parametrize("strength", [0.0, 0.3, 1e4])
def test_the_proximal_step_and_the_rate_are_their_closed_forms(strength):
    theta, star, f = tensors(0, torch.double), tensors(1, torch.double), importance(torch.double)
    near, slow = pulled(theta), pulled(theta)
    proximal_(near, star, f, strength, 0.1)
    rate_(slow, star, f, strength)
    for x, s, c, n, r in zip(theta, star, f, near, slow, strict=True):
        pull = 0.1 * strength * c
        torch.testing.assert_close(n, (x + pull * s) / (1 + pull), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(r, s + (x - s) / (1 + strength * c), rtol=1e-12, atol=1e-14)


def test_strength_0_and_importance_0_keep_every_bit():
    theta, star, f = tensors(0), tensors(1), importance()
    for strength in (0.0, 5.0):
        for change in (lambda x: proximal_(x, star, f, strength, 0.1), lambda x: rate_(x, star, f, strength)):  # noqa: B023
            mine = pulled(theta)
            change(mine)
            assert torch.equal(mine[0][10:], theta[0][10:])
            assert all(torch.equal(a, b) for a, b in zip(mine, theta, strict=True)) == (strength == 0)


def test_infinite_strength_leaves_no_freedom():
    theta, star, f = tensors(0), tensors(1), [torch.ones(shape) for shape in SHAPES.values()]
    proximal_(theta, star, f, float("inf"), 0.1)
    for x, s in zip(theta, star, strict=True):
        torch.testing.assert_close(x, s, rtol=0, atol=1e-6)


def test_importance_in_bf16_is_used_as_it_is():
    theta, star, f = tensors(0), tensors(1), [x.bfloat16() for x in importance()]
    grad, expected = [torch.zeros_like(x) for x in theta], [torch.zeros_like(x) for x in theta]
    add_penalty_gradient_(grad, theta, star, f, 2.0)
    add_penalty_gradient_(expected, theta, star, [x.float() for x in f], 2.0)
    assert all(torch.equal(a, b) for a, b in zip(grad, expected, strict=True))
    assert penalty(theta, star, f, 2.0) == penalty(theta, star, [x.float() for x in f], 2.0)


def test_weights_in_bf16_and_weights_that_are_not_contiguous():
    theta, star, f = tensors(0), tensors(1), importance()
    turned, flat = theta[1].T.contiguous().T, theta[1].clone()
    assert not turned.is_contiguous()
    proximal_([turned], [star[1]], [f[1]], 1.0, 0.5)
    proximal_([flat], [star[1]], [f[1]], 1.0, 0.5)
    assert torch.equal(turned, flat)
    half = theta[1].bfloat16()
    proximal_([half], [star[1]], [f[1]], 1.0, 0.5)
    torch.testing.assert_close(half.float(), flat, rtol=0, atol=0.01)


def test_shapes_that_differ_are_an_error():
    with pytest.raises(InputError, match=r"\(2,\), \(3,\)"):
        rate_([torch.ones(2)], [torch.ones(3)], [torch.ones(2)], 1.0)


def quadratic():
    """A new task 1/2 x'Ax - b'x, and its minimum with a penalty added: (A + lambda F)^-1 (b + lambda F theta*)."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.double)
    a, b, star = root @ root.T / 6 + torch.eye(6), *torch.randn(2, 6, generator=generator, dtype=torch.double)
    f = torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 30.0], dtype=torch.double)
    return a, b, star, f, torch.linalg.solve(a + 0.5 * torch.diag(f), b + 0.5 * f * star)


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_gradient_descent_reaches_the_known_optimum(mode):
    a, b, star, f, optimum = quadratic()
    x, eta = star.clone(), 0.05
    for _ in range(3000):
        grad = a @ x - b
        if mode == "gradient":
            add_penalty_gradient_([grad], [x], [star], [f], 0.5)
        x -= eta * grad
        if mode == "proximal":
            proximal_([x], [star], [f], 0.5, eta)
    torch.testing.assert_close(x, optimum, rtol=1e-9, atol=1e-9)
    assert (torch.linalg.solve(a, b) - optimum).abs().max() > 0.1


def test_with_a_rate_the_optimum_stays_where_it_is_but_important_weights_come_later():
    a, b, star, f, _ = quadratic()
    x, free = star.clone(), star.clone()
    for step in range(4000):
        before = x.clone()
        x -= 0.05 * (a @ x - b)
        rate_([x], [before], [f], 0.5)
        free -= 0.05 * (a @ free - b)
        if step == 0:
            torch.testing.assert_close(x - star, (free - star) / (1 + 0.5 * f))
    torch.testing.assert_close(x, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-6)


# ---- anchors


def anchor(seed=0, **meta):
    theta, f = (dict(zip(SHAPES, found, strict=True)) for found in (tensors(seed), importance()))
    return Anchor(theta, f, meta)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_file_gives_back_what_was_saved(tmp_path, mmap):
    made = anchor(encoder="abc", tasks={"甲": {"samples": 3}})
    found = Anchor.load(made.save(tmp_path / "deep" / "old.safetensors"), mmap)
    assert found.meta == made.meta
    for name in SHAPES:
        assert torch.equal(found.theta[name], made.theta[name])
        assert torch.equal(found.fisher[name], made.fisher[name])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["old.safetensors"]


def test_rows_of_zeros_are_not_stored(tmp_path):
    size = anchor().save(tmp_path / "old.safetensors").stat().st_size
    table = 300 * 1000 * 4
    assert table * (1 + 10 / 300) < size < table * 1.1


HELD = """
import sys
from pathlib import Path
import torch
from acge_lightning.continual.anchor import Anchor

def held():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024

warm = Anchor.load(sys.argv[1])
sum(float(t.sum()) for t in (*warm.theta.values(), *warm.fisher.values()))
del warm
before = held()
found = Anchor.load(sys.argv[1])
sum(float(t.sum()) for t in (*found.theta.values(), *found.fisher.values()))
print((held() - before) / sum(t.nbytes for t in found.theta.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize(("bf16", "copies"), [(False, 2.0), (True, 1.5)])
def test_what_is_made_anew_of_a_file_does_not_stay_in_memory_twice(bf16, copies, tmp_path):
    weights = {f"w{i}": torch.rand(1000, 1000) for i in range(10)}
    file = Anchor(weights, weights, {}).save(tmp_path / "old.safetensors", bf16)
    command = [sys.executable, "-c", HELD, str(file)]
    found = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert abs(found - copies) < 0.2


def test_bf16_rounds_the_importance_and_never_the_weights(tmp_path):
    made = anchor()
    made.fisher["weight"][1] = 1e-30
    made.fisher["bias"] *= 1e-37
    found = Anchor.load(made.save(tmp_path / "old.safetensors", bf16=True))
    assert all(torch.equal(found.theta[name], made.theta[name]) for name in SHAPES)
    for name in SHAPES:
        assert found.fisher[name].dtype == torch.bfloat16
        torch.testing.assert_close(found.fisher[name].float(), made.fisher[name], rtol=2**-8, atol=0)


def test_what_is_new_is_free_and_the_first_difference_is_named():
    made = anchor()
    parameters = {name: torch.empty(shape) for name, shape in SHAPES.items()}
    assert made.check(parameters) == []
    assert made.check(parameters | {"dense.linear.weight": torch.empty(2)}) == ["dense.linear.weight"]
    with pytest.raises(InputError, match=r"weight is \(5, 7\) in the anchor and \(5, 8\) in this encoder"):
        made.check(parameters | {"weight": torch.empty(5, 8), "bias": torch.empty(4)})
    del parameters["table"]
    with pytest.raises(InputError, match=r"holds table \(300, 1000\), which this encoder lacks"):
        made.check(parameters | {"bias": torch.empty(4)})


def test_files_that_are_no_anchors_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="no such file"):
        Anchor.load(file)
    file.write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(InputError, match="cannot be read"):
        Anchor.load(file)
    save_file({"theta/w": torch.ones(2)}, file)
    with pytest.raises(InputError, match="no anchor of this version"):
        Anchor.load(file)
    header = {"format": "acge_lightning.continual.anchor/1", "meta": {}, "scales": {}}
    for bad in ({}, {"fisher/w": torch.ones(3)}, {"fisher/w": torch.ones(1), "rows/w": torch.tensor([5])}):
        save_file({"theta/w": torch.ones(2)} | bad, file, {"acge": json.dumps(header)})
        with pytest.raises(InputError, match="do not fit together"):
            Anchor.load(file)


HOSTILE = {
    "fisher/w holds -1": {"fisher/w": torch.tensor([1.0, -1.0])},
    "fisher/w holds a number that is NaN": {"fisher/w": torch.tensor([1.0, torch.nan])},
    "fisher/w holds a number that is .* infinite": {"fisher/w": torch.tensor([1.0, torch.inf])},
    "theta/w holds a number that is NaN": {"theta/w": torch.tensor([1.0, torch.nan])},
    "theta/w holds a number .* infinite": {"theta/w": torch.tensor([-torch.inf, 1.0])},
    "theta/w is of torch.int64": {"theta/w": torch.tensor([1, 2])},
    "theta/w is of torch.float16": {"theta/w": torch.ones(2).half()},
    "fisher/w is of torch.float16": {"fisher/w": torch.ones(2).half()},
    "rows/w are no rows": {"fisher/w": torch.ones(1), "rows/w": torch.tensor([-1])},
    r"rows/w are no rows of \(2,\)": {"fisher/w": torch.ones(1), "rows/w": torch.tensor([0.0])},
    "w: ": {"fisher/w": torch.ones(2, 2)},
    "fisher/v belongs to no weights": {"fisher/v": torch.ones(2)},
    "spare belongs to no weights": {"spare": torch.ones(2)},
}


@pytest.mark.parametrize("told", HOSTILE)
def test_an_anchor_whose_numbers_cannot_be_is_refused(tmp_path, told):
    header = {"acge": json.dumps({"format": "acge_lightning.continual.anchor/1", "meta": {}, "scales": {}})}
    good = {"theta/w": torch.ones(2), "fisher/w": torch.ones(2)}
    save_file(good, tmp_path / "good.safetensors", header)
    assert Anchor.load(tmp_path / "good.safetensors").fisher["w"].tolist() == [1, 1]
    save_file(good | HOSTILE[told], tmp_path / "bad.safetensors", header)
    with pytest.raises(InputError, match=rf"bad\.safetensors: its parts do not fit together \({told}.*again"):
        Anchor.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        '{"format": "acge_lightning.continual.anchor/1", "meta": {}}',
        '{"format": "acge_lightning.continual.anchor/1", "meta": [], "scales": {}}',
        '{"format": "acge_lightning.continual.anchor/1", "meta": {}, "scales": []}',
        '{"format": "acge_lightning.continual.anchor/1", "meta": {}, "scales": {"w": "x"}}',
        '{"format": "acge_lightning.continual.anchor/1", "meta": {}, "scales": {"w": -1}}',
        '{"format": "acge_lightning.continual.anchor/1", "meta": {}, "scales": {"w": 1e300}}',
    ],
)
def test_an_anchor_of_another_header_is_refused(tmp_path, header):
    save_file({"theta/w": torch.ones(2), "fisher/w": torch.ones(2)}, tmp_path / "bad.safetensors", {"acge": header})
    with pytest.raises(InputError, match=r"bad\.safetensors.*again"):
        Anchor.load(tmp_path / "bad.safetensors")


def test_merging_decays_the_old_and_takes_the_last_weights():
    one, two, three = anchor(0, n=1), anchor(1, n=2), anchor(2, n=3)
    two.fisher["bias"] = torch.full((3,), 8.0)
    three.fisher["head"] = three.theta["head"] = torch.ones(2)
    found = merged([one, two, three], 0.5)
    f = one.fisher["bias"]
    torch.testing.assert_close(found.fisher["bias"], f * 0.25 + 8 * 0.5 + f)
    assert torch.equal(found.fisher["head"], torch.ones(2))
    assert all(torch.equal(found.theta[name], three.theta[name]) for name in three.theta)
    assert found.meta["merged"] == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert merged([one], 0.5).meta == {"n": 1}
    assert torch.equal(merged([one, two], 0.0).fisher["bias"], two.fisher["bias"])
    for bad in ([], [one, Anchor({"bias": torch.ones(4)}, {"bias": torch.ones(4)}, {})]):
        with pytest.raises(InputError):
            merged(bad, 0.5)
    with pytest.raises(InputError, match="decay"):
        merged([one], 1.5)
