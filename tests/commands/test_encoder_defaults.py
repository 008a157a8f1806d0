"""What follows the encoder where the config leaves it open: the learning rate, and the sizes of prefixes."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir

from acge_lightning import load
from acge_lightning.commands.encoder_defaults import follow_encoder
from acge_lightning.commands.single_run import train
from acge_lightning.config.sources import config_dir
from acge_lightning.encoder.build import static, transformer
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError

BERT = {"model_type": "bert", "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary(["今天天气很好，我们去公园。", "怎么退货？"] * 3, "bpe", 200)


def composed(*words):
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("train", ["paths.output_dir=.", *words])


def encoder_of(kind, tokenizer, dim=48):
    return (
        static(tokenizer, dim=dim) if kind == "static" else transformer(tokenizer, BERT | {"hidden_size": dim}, max_length=64)
    )


PRETRAINED = ["encoder=pretrained", "encoder.path=a"]


@pytest.mark.parametrize(
    ("kind", "words", "rate", "decay", "named"),
    [
        ("static", [], 5e-3, 0.0, "a static encoder that begins at random"),
        ("static", PRETRAINED, 1e-3, 0.0, "a pretrained static encoder"),
        ("transformer", ["encoder=bert_mini"], 5e-4, 0.01, "a transformer that begins at random"),
        ("transformer", PRETRAINED, 2e-5, 0.01, "a pretrained transformer"),
        ("transformer", ["+experiment=quickstart", "encoder=bert_mini"], 5e-4, 0.01, "a transformer that begins at random"),
        ("static", ["+experiment=finetune", "encoder.path=a", "paths.data=b"], 1e-3, 0.0, "a pretrained static encoder"),
    ],
)
def test_the_learning_rate_follows_the_encoder_and_is_said(kind, words, rate, decay, named, tokenizer):
    cfg = composed(*words)
    said = follow_encoder(cfg, encoder_of(kind, tokenizer))
    assert (cfg.optim.optimizer.lr, cfg.optim.weight_decay) == (rate, decay)
    assert cfg.optim.optimizer.get("fused", False) == (kind == "static")
    assert said == [f"Learning rate {rate:g}, for {named} (optim.optimizer.lr=… sets another)"]
    assert follow_encoder(cfg, encoder_of(kind, tokenizer)) == [], "it is settled"


@pytest.mark.parametrize("words", [["optim=adamw_static_low"], ["optim.optimizer.lr=5.0e-4"], ["+experiment=zh_multitask"]])
def test_one_that_is_chosen_stays(words, tokenizer):
    cfg = composed(*words)
    assert follow_encoder(cfg, encoder_of("static", tokenizer)) == []
    assert cfg.optim.optimizer.lr == 5e-4


def test_an_experiment_of_a_static_encoder_takes_a_transformer(tokenizer):
    """As its comment has it: optim=adamw leaves nothing of the rate that suits a static one."""
    cfg = composed("+experiment=zh_multitask", *PRETRAINED, "optim=adamw", "matryoshka=none")
    follow_encoder(cfg, encoder_of("transformer", tokenizer))
    assert cfg.optim.optimizer.lr == 2e-5


@pytest.mark.parametrize(
    ("kind", "words", "rate", "remark"),
    [
        ("static", [], 2e-5, "optim.optimizer.lr=2e-05 is very small for a static encoder that begins at random"),
        ("static", PRETRAINED, 2e-5, "very small for a pretrained static encoder"),
        ("transformer", PRETRAINED, 5e-3, "very large for a pretrained transformer, so it may lose what it has"),
        ("transformer", PRETRAINED, 1e-4, None),
        ("static", ["optim.optimizer._target_=torch.optim.SGD", "~optim.optimizer.betas", "~optim.optimizer.eps"], 1.0, None),
    ],
)
def test_a_rate_that_cannot_suit_is_remarked_on(kind, words, rate, remark, tokenizer):
    said = follow_encoder(composed(*words, f"optim.optimizer.lr={rate}"), encoder_of(kind, tokenizer))
    assert len(said) == (remark is not None)
    assert remark is None or remark in said[0]


@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_scaled_gradients_get_no_fused_optimizer(precision, tokenizer):
    cfg = composed(f"trainer.precision={precision}")
    follow_encoder(cfg, encoder_of("static", tokenizer))
    assert cfg.optim.optimizer.fused is False


# ---- prefixes


@pytest.mark.parametrize(
    ("dim", "dims"),
    [(512, [512, 256, 128, 64]), (768, [768, 384, 192, 96]), (300, [300, 150, 75, 37]), (16, [16, 8]), (6, [6])],
)
def test_halves_follow_the_size_of_the_encoder(dim, dims, tokenizer):
    cfg = composed("matryoshka=halves")
    follow_encoder(cfg, encoder_of("static", tokenizer, dim))
    assert list(cfg.matryoshka.dims) == dims


@pytest.mark.parametrize(
    ("words", "dims"),
    [
        (["matryoshka.dims=[48,12]"], [48, 12]),
        (["matryoshka.dims=48"], [48]),
        (["matryoshka=halves", "matryoshka.dims=[48,20]"], [48, 20]),
        (["+experiment=quickstart", "matryoshka=none"], None),
        ([], None),
    ],
)
def test_dims_work_alone(words, dims, tokenizer):
    cfg = composed(*words)
    follow_encoder(cfg, encoder_of("static", tokenizer))
    assert (cfg.matryoshka and list(cfg.matryoshka.dims)) == dims


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("matryoshka.weights=[1,2]", r"matryoshka\.weights needs sizes: add matryoshka\.dims=\[48"),
        ("matryoshka.dims=thirds", r"matryoshka\.dims=thirds must be sizes: \[48,24\], or halves"),
        ("matryoshka.dims=[48,a]", r"must be sizes"),
    ],
)
def test_what_are_no_sizes_is_refused(word, message, tokenizer):
    with pytest.raises(InputError, match=message):
        follow_encoder(composed(word), encoder_of("static", tokenizer))


def test_a_run_scores_every_prefix_before_and_after_and_records_what_it_chose(tmp_path, cache, capsys):
    tiny = ["encoder.dim=48", "encoder.tokenizer.vocab_size=900", "trainer.accelerator=cpu", "callbacks.progress=null"]
    tasks = ["task=[sample_sts,sample_retrieval]", "+task.sample_sts.data.max_train=640", "max_dev=60"]
    paths = [f"paths.output_dir={tmp_path}", f"paths.cache_dir={cache}"]
    train(composed(*tiny, *tasks, *paths, "matryoshka=halves", "trainer.max_epochs=2"))
    result = json.loads((tmp_path / "result.json").read_text())
    config = json.loads((tmp_path / "export" / "training.json").read_text())["config"]
    assert config["optim"]["optimizer"]["lr"] == 5e-3
    assert config["matryoshka"]["dims"] == [48, 24, 12]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["config"]["optim"]["optimizer"]["lr"] == 5e-3
    shown = capsys.readouterr().out
    for dim in (24, 12):
        after = result["after"]
        expected = (after[f"val/sample_sts/spearman@{dim}"] + after[f"val/sample_retrieval/ndcg@{dim}"]) / 2
        assert after[f"val/mean@{dim}"] == pytest.approx(expected, abs=1e-6)
        (line,) = [line for line in shown.splitlines() if f"val/mean@{dim} " in line]
        assert f"{result['before'][f'val/mean@{dim}']:.4f}" in line
        assert f"{after[f'val/mean@{dim}']:.4f}" in line
    assert "spearman@" not in shown
    assert sts_of(tmp_path / "export", 12, cache) == pytest.approx(result["after"]["val/sample_sts/spearman@12"], abs=1e-5)


def sts_of(folder, dim, cache):
    """Spearman's correlation of the dev rows, from the export and scipy."""
    from scipy.stats import spearmanr

    from acge_lightning.data import STSDataModule

    data = STSDataModule("sample:sts/sample_zh", max_dev=60, cache_dir=cache)
    data.open()
    evaluation = data.evaluation("dev")
    vectors = load(folder).encode(evaluation.texts.to_pylist(), dim)
    first, second, scores = torch.as_tensor(evaluation.judgements).unbind(1)
    return spearmanr((vectors[first.long()] * vectors[second.long()]).sum(1), scores).statistic
