"""Masked-LM pre-training against a padded forward pass and numpy, and a run of thirty steps."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy.special import erf, log_softmax
from transformers import AutoModel, AutoTokenizer

import acge_lightning
from acge_lightning.data import EvaluationBatch, MixtureDataModule, RetrievalDataModule, Task, TextBatch, UnlabelledDataModule
from acge_lightning.encoder.build import static, transformer
from acge_lightning.encoder.tokens import Tokens
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.training.masked_lm import MaskedLanguageModule
from acge_lightning.training.optim import Optim

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {"model_type": "bert", "max_position_embeddings": 80, **TINY}
SAMPLE = "sample:unlabelled/sample_zh"
TEXTS = [
    "今天天气很好，我们去公园散步。",
    "手机",
    "能否告诉我手提电脑现在运到什么地方了？",
    "",
    "在吗？做胃镜之前要空腹吗？",
    "退货",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def texts(folder):
    data = UnlabelledDataModule(SAMPLE, holdout=0.05, cache_dir=folder)
    data.setup()
    return list(data.train_texts())


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_vocabulary(texts, vocab_size=700)


@pytest.fixture
def make(tokenizer):
    """A module over a tiny backbone whose logits are far from flat."""

    def make(dtype=torch.float32, config=BERT, dense=None, spread=0.3, tasks=None, **others):
        torch.manual_seed(0)
        encoder = transformer(tokenizer, {"initializer_range": spread, **config}, max_length=64, dense=dense)
        module = MaskedLanguageModule(encoder, tasks or {}, **others)
        torch.nn.init.normal_(module.bias)
        return module.to(dtype).eval()

    return make


def by_id(module):
    """`hide` as a function of the ids alone, so that it hides the same tokens however the texts are put together."""
    special = torch.tensor(module.encoder.tokenize.tokenizer.all_special_ids)
    size, mask_id = module.encoder.backbone.config.vocab_size, module.encoder.tokenize.tokenizer.mask_token_id

    def hide(ids, mask, generator=None):
        chosen = (mask == 1) & (ids % 3 != 0) & ~torch.isin(ids, special)
        return torch.where(chosen, torch.where(ids % 2 == 0, mask_id, ids * 7 % size), ids), chosen

    return hide


# ---- which tokens are hidden


def a_lot(tokenizer, rows=400, width=512):
    """Random ids with special tokens among them; the second half of the odd rows is padding, though not by its ids."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, len(tokenizer), (rows, width), generator=generator)
    ids[:, ::10] = torch.tensor(tokenizer.all_special_ids)[torch.arange(rows) % len(tokenizer.all_special_ids)][:, None]
    mask = torch.ones_like(ids)
    mask[1::2, width // 2 :] = 0
    return ids, mask


def within(share, expected, n, sigmas=4):
    return abs(share - expected) < sigmas * (expected * (1 - expected) / n) ** 0.5


def test_shares_of_the_hidden_tokens(make, tokenizer):
    module, size = make(masking=0.2), len(tokenizer)
    ids, mask = a_lot(tokenizer)
    before = ids.clone()
    hidden, chosen = module.hide(ids, mask, torch.Generator().manual_seed(0))
    assert torch.equal(ids, before), "the true ids, which are the labels, were overwritten"
    assert torch.equal(hidden[~chosen], ids[~chosen])
    open_to_it = (mask == 1) & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & ~open_to_it).any()
    assert within(chosen.sum() / open_to_it.sum(), 0.2, int(open_to_it.sum()))
    n = int(chosen.sum())
    masked = hidden[chosen] == tokenizer.mask_token_id
    kept = hidden[chosen] == ids[chosen]
    assert within(masked.double().mean(), 0.8 + 0.1 / size, n)
    assert within(kept.double().mean(), 0.1 + 0.1 / size, n)
    others = hidden[chosen][~masked & ~kept].double()
    assert within(len(others) / n, 0.1 * (1 - 2 / size), n)
    assert others.min() >= 0
    assert others.max() < size
    counts = torch.histc(others, 10, 0, size) / len(others)
    assert all(within(share, 0.1, len(others)) for share in counts.tolist()), "random tokens are not drawn evenly"


def test_special_tokens_and_padding_are_never_chosen(make, tokenizer):
    ids, mask = a_lot(tokenizer, rows=40, width=64)
    _, chosen = make(masking=1 - 1e-9).hide(ids, mask)
    assert torch.equal(chosen, (mask == 1) & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids)))


def test_at_least_one_token_is_chosen_wherever_there_is_one(make, tokenizer):
    module = make(masking=1e-12)
    ids, mask = a_lot(tokenizer, rows=6, width=32)
    places = set()
    for seed in range(20):
        _, chosen = module.hide(ids, mask, torch.Generator().manual_seed(seed))
        ((row, column),) = chosen.nonzero().tolist()
        assert mask[row, column] == 1
        assert ids[row, column] not in tokenizer.all_special_ids
        places.add((row, column))
    assert len(places) > 10
    only_special = torch.tensor([[tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]])
    assert not module.hide(only_special, torch.tensor([[1, 1, 0]]))[1].any()


def test_a_generator_decides_everything(make, tokenizer):
    module = make()
    ids, mask = a_lot(tokenizer, rows=6, width=32)
    first, again, other = (module.hide(ids, mask, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert not torch.equal(module.hide(ids, mask)[1], module.hide(ids, mask)[1]), "training must draw anew"


# ---- the loss


def oracle(module, texts):
    """(sum of cross-entropies, right guesses, hidden tokens), all texts in one padded batch and the rest in numpy."""
    tokenizer = module.encoder.tokenize.tokenizer
    rows = [tokenizer(text, truncation=True, max_length=64)["input_ids"] for text in texts]
    ids = np.full((len(rows), max(map(len, rows)) + 3), tokenizer.pad_token_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = torch.tensor([[int(j < len(row)) for j in range(ids.shape[1])] for row in rows])
    hidden, chosen = by_id(module)(torch.tensor(ids), mask)
    with torch.no_grad():
        states = module.encoder.backbone(input_ids=hidden, attention_mask=mask).last_hidden_state[chosen].double().numpy()
    weights = {name: value.detach().double().numpy() for name, value in module.named_parameters()}
    x = states @ weights["transform.0.weight"].T + weights["transform.0.bias"]
    x = x * (1 + erf(x / 2**0.5)) / 2
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    x = x * weights["transform.2.weight"] + weights["transform.2.bias"]
    logits = x @ weights["encoder.backbone.embeddings.word_embeddings.weight"].T + weights["bias"]
    labels = ids[chosen.numpy()]
    logs = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return -logs.sum(), int((logits.argmax(1) == labels).sum()), len(labels)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.double, 1e-6), (torch.float, 1e-5)])
def test_loss_is_that_of_one_padded_batch_in_numpy(make, texts, dtype, tolerance, monkeypatch):
    module = make(dtype)
    torch.nn.init.normal_(module.transform[2].weight)
    with torch.no_grad():
        module.bias[module.encoder.tokenize.tokenizer.convert_tokens_to_ids("吗")] = 12.0  # so that some guesses are right
    monkeypatch.setattr(module, "hide", by_id(module))
    some = [*TEXTS, *texts[:20]]
    loss, right, count = module.guess(module.encoder.tokenize(some))
    expected = oracle(module, some)
    assert loss.item() == pytest.approx(expected[0], rel=tolerance)
    assert (right.item(), count.item()) == expected[1:]
    assert 0 < right < count


def test_batch_tokens_changes_nothing(make, texts, monkeypatch):
    module = make(torch.double)
    monkeypatch.setattr(module, "hide", by_id(module))
    shapes = []
    module.encoder.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    tokens = module.encoder.tokenize([*TEXTS, *texts[:20]])
    found = []
    for batch_tokens in (1, 70, 8192):
        module.batch_tokens = batch_tokens
        shapes.clear()
        values = module.guess(tokens)
        gradient = torch.autograd.grad(values[0], module.encoder.backbone.get_input_embeddings().weight)[0]
        found.append((values, gradient))
        assert all(n * width <= max(batch_tokens, int(tokens.lengths.max())) for n, width in shapes)
        assert sum(width for _, width in shapes) == len(tokens.ids)  # nothing is padded
    assert len(shapes) == 1
    for values, gradient in found[:2]:
        assert values[0].item() == pytest.approx(found[2][0][0].item(), rel=1e-6)
        assert values[1:] == found[2][0][1:]
        torch.testing.assert_close(gradient, found[2][1], rtol=1e-5, atol=1e-6)


def test_gradients_reach_all_that_is_trained(make, texts, monkeypatch):
    """None for the Dense head, which comes after pooling; and, in BERT, zero where nothing is used or changed.

    Unused: the second token type, and positions beyond the longest text. A bias of the keys adds the same to all scores of a
    query, which softmax ignores.
    """
    module = make(torch.double, dense=8)
    monkeypatch.setattr(module, "hide", by_id(module))
    tokens = module.encoder.tokenize(texts[:40])
    module.guess(tokens)[0].backward()
    assert all(weight.grad is None for weight in module.encoder.dense.parameters())
    assert all(weight.grad.abs().min() > 0 for weight in (module.bias, *module.transform.parameters()))
    for name, weight in module.encoder.backbone.named_parameters():
        if name.endswith("key.bias"):
            assert weight.grad.abs().max() < 1e-5, name
        else:
            used = {"token_type": 1, "position": int(tokens.lengths.max())}
            rows = next((n for word, n in used.items() if f"{word}_embeddings" in name), len(weight))
            assert weight.grad.isfinite().all()
            assert (weight.grad[:rows] != 0).flatten(1).any(1).all() if weight.ndim > 1 else weight.grad.any(), name
            assert not weight.grad[rows:].any(), name


def test_gradient_of_the_tied_table_is_the_derivative_of_the_loss(make, texts, monkeypatch):
    module = make(torch.double)
    monkeypatch.setattr(module, "hide", by_id(module))
    tokens, table = module.encoder.tokenize(texts[:10]), module.encoder.backbone.get_input_embeddings().weight
    gradient = torch.autograd.grad(module.guess(tokens)[0], table)[0]
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        above, below = (table.add_(move) is not None and module.guess(tokens)[0].item() for move in (step, -2 * step))
    assert (above - below) / 2e-3 == pytest.approx(gradient.norm().item(), rel=1e-2)


@pytest.mark.parametrize("config", [{"model_type": "albert"}, {"model_type": "electra", "embedding_size": 16}])
def test_embeddings_of_another_size_than_the_hidden_states(make, config):
    module = make(config={**BERT, **config})
    loss, _, count = module.guess(module.encoder.tokenize(TEXTS))
    loss.backward()
    assert loss / count > 1
    assert module.encoder.backbone.get_input_embeddings().weight.grad.any()


def test_a_table_with_more_rows_than_tokens(tokenizer):
    encoder = transformer(tokenizer, BERT, max_length=64)
    encoder.backbone.resize_token_embeddings(len(tokenizer) * 2, mean_resizing=False)
    module = MaskedLanguageModule(encoder, {})
    loss, _, count = module.guess(encoder.tokenize(TEXTS))
    assert (loss / count).isfinite()
    assert module.hide(torch.full((50, 50), 9), torch.ones(50, 50))[0].max() < len(tokenizer)


def test_a_step_is_the_mean_over_hidden_tokens(make, monkeypatch):
    module = make()
    monkeypatch.setattr(module, "hide", by_id(module))
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value.item()}))
    tokens = module.encoder.tokenize(TEXTS)
    loss, _, count = oracle(module, TEXTS)
    value = module.training_step(TextBatch("t", (tokens, module.encoder.tokenize(TEXTS[:1])), None, ()))
    assert value.item() == pytest.approx(loss / count, rel=1e-5)
    assert logged == {"train/loss": value.item()}
    special = Tokens.from_lists([module.special.tolist()])
    empty = module.training_step(TextBatch("t", (special,), None, ()))
    assert empty.item() == 0
    empty.backward()
    assert not module.bias.grad.any()


# ---- what it refuses


def unlabelled(folder, holdout=0.05):
    return UnlabelledDataModule(SAMPLE, batch_size=32, holdout=holdout, cache_dir=folder)


@pytest.mark.parametrize("masking", [0, 1, 1.5, -0.1, float("nan")])
def test_masking_must_be_a_share(make, masking):
    with pytest.raises(InputError, match=r"masking=.* is no share"):
        make(masking=masking)


def test_refuses_what_cannot_be_pretrained(make, tokenizer, texts, folder):
    with pytest.raises(InputError, match="static encoder"):
        MaskedLanguageModule(static(tokenizer, dim=8), {})
    with pytest.raises(InputError, match="no mask token"):
        MaskedLanguageModule(transformer(train_vocabulary(texts[:50], "bpe", 400), BERT, max_length=64), {})
    with pytest.raises(InputError, match="matryoshka to null"):
        make(matryoshka={"dims": [16]})
    tasks = {"good": Task(unlabelled(folder)), "bad": Task(RetrievalDataModule("sample:retrieval/sample_zh"))}
    with pytest.raises(InputError, match="'bad' is not of the unlabelled family"):
        make(tasks=tasks)


# ---- a run


def trainer(folder, **others):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        **others,
    )


@pytest.fixture(scope="module")
def run(tokenizer, folder):
    """Thirty steps, with a validation of three batches before and two after."""
    torch.manual_seed(0)
    data = unlabelled(folder)
    encoder = transformer(tokenizer, BERT, max_length=64)
    optim = Optim(partial(torch.optim.AdamW, lr=3e-3))
    module = MaskedLanguageModule(encoder, {"plain": Task(data)}, masking=0.3, optim=optim)
    mixture = MixtureDataModule({"plain": data})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acge_lightning.data.loaders._EVALUATION_TEXTS", 40)
        trains = trainer(folder, max_steps=30)
        (before,) = trains.validate(module, mixture, verbose=False)
        trains.fit(module, mixture)
        after = [trains.validate(module, mixture, verbose=False)[0] for _ in range(2)]
        module.trainer = trains
        batches = list(mixture.val_dataloader()[0])
    return SimpleNamespace(module=module.eval(), before=before, after=after, steps=trains.global_step, batches=batches)


def test_thirty_steps_lower_the_loss(run):
    assert run.steps == 30
    assert run.before["val/loss"] == pytest.approx(np.log(len(run.module.bias)), abs=0.5)
    assert run.after[0]["val/loss"] < run.before["val/loss"] - 0.3
    assert run.after[0]["val/mean"] > run.before["val/mean"]
    assert all(set(scores) == {"val/loss", "val/mean"} for scores in (run.before, *run.after))
    assert all(0 <= scores["val/mean"] <= 1 for scores in (run.before, *run.after))


def test_validation_repeats_itself(run):
    assert run.after[0] == run.after[1]


def test_validation_counts_every_hidden_token_once(run):
    assert len(run.batches) == 3
    total = np.zeros(3)
    with torch.no_grad():
        for i, batch in enumerate(run.batches):
            generator = torch.Generator().manual_seed(i)
            total += [value.item() for value in run.module.guess(batch.tokens, generator)]
    assert run.after[0]["val/loss"] == pytest.approx(total[0] / total[2], rel=1e-5)
    assert run.after[0]["val/mean"] == pytest.approx(total[1] / total[2], rel=1e-5)


def test_what_is_saved_is_a_start_for_others(run, tmp_path):
    encoder = run.module.encoder
    saved = run.module.save(tmp_path, {"steps": 30, "data": {"plain": {"train": 7}}})
    assert saved == tmp_path / "backbone"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in saved.iterdir()}
    assert not (saved / "modules.json").exists()
    assert json.loads((saved / "training.json").read_text()) == {"steps": 30, "data": {"plain": {"train": 7}}}
    assert [file.name for file in tmp_path.iterdir()] == ["backbone"]
    theirs, tokenizer = AutoModel.from_pretrained(saved).eval(), AutoTokenizer.from_pretrained(saved)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mine = encoder.tokenize(TEXTS)
    ids, mask = mine.padded(torch.arange(len(TEXTS)), encoder.tokenize.pad_id)
    assert torch.equal(inputs["input_ids"], ids)
    again = acge_lightning.load(saved)
    with torch.no_grad():
        expected = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        for backbone in (theirs, again.backbone):
            found = backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.encode(TEXTS), encoder.encode(TEXTS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("action", ["validate", "fit"])
def test_no_text_to_validate_on(make, folder, action):
    data = unlabelled(folder, holdout=0.0)
    module = make(tasks={"plain": Task(data)})
    with pytest.raises(InputError, match=r"set data\.holdout above 0"):
        getattr(trainer(folder, max_steps=1), action)(module, MixtureDataModule({"plain": data}))


@pytest.mark.filterwarnings("ignore:Total length of", "ignore:Found .* in eval mode")  # nothing is validated, nor dropped
def test_training_without_validation_needs_no_holdout(make, folder):
    data = unlabelled(folder, holdout=0.0)
    trains = trainer(folder, max_steps=1, limit_val_batches=0)
    trains.fit(make(tasks={"plain": Task(data)}), MixtureDataModule({"plain": data}))
    assert trains.global_step == 1


def test_text_to_validate_on_without_a_token_to_guess(make):
    module = make()
    module.on_validation_epoch_start()
    module.validation_step(EvaluationBatch("t", Tokens.from_lists([module.special.tolist()]), torch.zeros(1), None), 0)
    with pytest.raises(InputError, match="no text to validate on"):
        module.on_validation_epoch_end()
