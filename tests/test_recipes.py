"""Published recipes: they start from a model of their true width, take real optimizer steps, and leave what they promise."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import BertConfig, BertModel

from acge_lightning.commands.single_run import train
from acge_lightning.commands.stages import sequence
from acge_lightning.config.sources import config_dir
from acge_lightning.encoder.encoder import Dense
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.export.sentence_transformers import export
from acge_lightning.zoo.pretrained import from_pretrained, load

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
TOKENS = 21128  # of the Chinese BERTs
# Recipe -> the shape of its start, whether that has a head to 1792 dims, the dims, the positions, millions of parameters:
# without the pooler, which no loss reaches, and with the head.
RECIPES = {
    "simcse_zh": (BASE, False, 768, 512, 101.677056),
    "m3e": (BASE, False, 768, 512, 101.677056),
    "piccolo2": (LARGE, True, 1792, 512, 326.309632),
    "stella_mrl": (LARGE, True, 1792, 512, 326.309632),
    "acge": (LARGE, False, 1792, 1024, 326.833920),
}


def settings(shape, layers=None):
    shape = shape if layers is None else shape | {"num_hidden_layers": layers}
    return BertConfig(vocab_size=TOKENS, max_position_embeddings=512, **shape)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_those_of_the_published_model(name):
    shape, _, dims, positions, millions = RECIPES[name]
    with torch.device("meta"):
        backbone = BertModel(settings(shape), add_pooling_layer=False)
        head = Dense(1024, 1792) if dims == 1792 else torch.nn.Module()
    added = (positions - 512) * shape["hidden_size"]
    assert count(backbone) + count(head) + added == millions * 1e6


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Makes the folder of a plain BERT of true width with two layers and random weights."""
    made = {}

    def make(shape, has_head):
        key = shape["hidden_size"], has_head
        if key not in made:
            folder = tmp_path_factory.mktemp("start")
            torch.manual_seed(0)
            BertModel(settings(shape, layers=2)).save_pretrained(folder)
            tokenizer = train_vocabulary(["今天天气很好，我们去公园。怎么退货？"], vocab_size=200)
            tokenizer.add_tokens([f"[unused{i}]" for i in range(TOKENS - len(tokenizer))])
            tokenizer.save_pretrained(folder)
            made[key] = export(from_pretrained(folder, dense=1792), folder / "export") if has_head else folder
        return made[key]

    return make


def composed(name, data, encoder, out, cache):
    given = [
        f"+experiment={name}",
        "debug=fast",
        "callbacks.progress=null",
        "trainer.accelerator=cpu",
        f"paths.data_dir={data}",
    ]
    given += [f"encoder.path={encoder}", f"paths.output_dir={out}", f"paths.cache_dir={cache}"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*given, "fisher={samples: 8, pool: 100}"])
    for task in cfg.task.values():
        OmegaConf.update(task, "data.max_dev", 40, force_add=True)
        OmegaConf.update(task, "data.batch_size", 4, force_add=True)
    return cfg


@pytest.mark.heavy
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_steps_at_its_true_width(name, start, data_sets, cache, tmp_path, monkeypatch):
    shape, has_head, dims, positions, _ = RECIPES[name]
    sizes = []  # bytes of weights, gradients and optimizer states at each step, and the weights that are trained
    step = torch.optim.AdamW.step

    def measured(optimizer, *args, **kwargs):
        result = step(optimizer, *args, **kwargs)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        held = [t for p in trained for t in (p, p.grad, *(v for v in optimizer.state[p].values() if v.dim()))]
        sizes.append((sum(t.numel() * t.element_size() for t in held), sum(p.numel() for p in trained)))
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    cfg = composed(name, data_sets, start(shape, has_head), tmp_path / "run", cache)
    prefixes = (cfg.matryoshka or {}).get("dims") or ()
    before = from_pretrained(start(shape, has_head), positions=positions)
    assert 0 <= (sequence if cfg.stages else train)(cfg) <= 1
    assert len(sizes) >= 2
    assert all(size == 16 * weights for size, weights in sizes), "four numbers a weight, of four bytes"

    encoder = load(tmp_path / "run")
    assert encoder.dim == dims
    assert count(encoder) == sizes[-1][1]
    backbone = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert (backbone["hidden_size"], backbone["max_position_embeddings"]) == (shape["hidden_size"], positions)
    assert encoder.matryoshka_dims == tuple(prefixes)
    moved = [n for n, p in encoder.backbone.named_parameters() if not torch.equal(p, before.backbone.get_parameter(n))]
    assert any("encoder.layer.0" in n for n in moved)
    assert encoder.encode(["今天天气很好" * 300]).isfinite().all()
