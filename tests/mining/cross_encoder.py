"""A small cross-encoder with drawn weights, in a folder."""

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from acge_lightning.encoder.vocabulary import train_vocabulary

TEXTS = ["今天天气很好，我们去公园。", "怎么退货？", "how do I return this 2024", "weather in the park is fine today"] * 3


def save(folder, outputs=1, **sizes):
    """Draw and save one; its words are those of `TEXTS`."""
    torch.manual_seed(0)
    tokenizer: PreTrainedTokenizerFast = train_vocabulary(TEXTS, "wordpiece", 200)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64} | sizes
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=outputs, initializer_range=0.4, **sizes
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder
