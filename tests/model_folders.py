"""Small model folders of each kind that can be read."""

import shutil

import torch

from acge_lightning.encoder import Dense, static, train_vocabulary, transformer
from acge_lightning.export.sentence_transformers import export, save_backbone

CORPUS = ["今天天气很好，我们去公园散步。", "Machine learning is fun!", "手机屏幕质量很好"] * 5
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


def make(kind, folder):
    torch.manual_seed(0)
    if kind == "static":
        return export(static(train_vocabulary(CORPUS, "unigram", 100), dim=8, max_length=20, dense=6), folder)
    encoder = transformer(train_vocabulary(CORPUS, vocab_size=120), BERT, max_length=32, prompts={"query": "问："})
    if kind == "plain":
        return save_backbone(encoder, folder)
    if kind == "vocab":  # the tokenizer as a list of words
        vocabulary = encoder.tokenize.tokenizer.get_vocab()
        save_backbone(encoder, folder)
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
        (folder / "special_tokens_map.json").write_text('{"unk_token": "[UNK]", "pad_token": "[PAD]"}')
        (folder / "added_tokens.json").write_text("{}")
        return folder
    encoder.dense = Dense(16, 12, activation="Tanh")
    encoder.matryoshka_dims = (4, 12)
    export(encoder, folder)
    if kind == "newer":
        from sentence_transformers import SentenceTransformer

        SentenceTransformer(str(folder), device="cpu").save(str(folder) + "-newer")
        shutil.rmtree(folder)
        shutil.move(str(folder) + "-newer", folder)
    return folder
