"""The encoder: text in, embeddings out; building a fresh one, and learning its vocabulary."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.encoder.build import static as static
    from acge_lightning.encoder.build import transformer as transformer
    from acge_lightning.encoder.encoder import Dense as Dense
    from acge_lightning.encoder.encoder import Encoder as Encoder
    from acge_lightning.encoder.encoder import StaticBackbone as StaticBackbone
    from acge_lightning.encoder.encoder import similarity as similarity
    from acge_lightning.encoder.positions import extend_positions as extend_positions
    from acge_lightning.encoder.positions import extend_table as extend_table
    from acge_lightning.encoder.tokens import Tokens as Tokens
    from acge_lightning.encoder.vocabulary import train_vocabulary as train_vocabulary

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    build="static transformer",
    encoder="Dense Encoder StaticBackbone similarity",
    positions="extend_positions extend_table",
    tokens="Tokens",
    vocabulary="train_vocabulary",
)
