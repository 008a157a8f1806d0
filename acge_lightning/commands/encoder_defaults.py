"""Fill in what a config leaves to the encoder: the learning rate, and prefix sizes that follow its size."""

from __future__ import annotations

from omegaconf import DictConfig, ListConfig, OmegaConf

from acge_lightning.encoder.encoder import Encoder, StaticBackbone
from acge_lightning.errors import InputError
from acge_lightning.training.optim import EncoderKind

_HALVES = "halves"  # of matryoshka.dims
_HALVINGS = 3
_SHORTEST = 8  # dims of a prefix


def follow_encoder(cfg: DictConfig, encoder: Encoder) -> list[str]:
    """Set, in place, the values that are null or follow the encoder: `optim` and `matryoshka`.

    Args:
        cfg: composed from `conf/train.yaml`.
        encoder: what is trained.

    Returns:
        Sentences on the learning rate: which one was chosen, or that the given one cannot suit.

    Raises:
        InputError: `matryoshka` without sizes.
    """
    _set_dims(cfg, encoder.dim)
    kind = kind_of(cfg, encoder)
    target = str(OmegaConf.select(cfg, "optim.optimizer._target_"))
    if OmegaConf.select(cfg, "optim.weight_decay", default=0) is None:
        cfg.optim.weight_decay = kind.weight_decay
    if kind.static and target == "torch.optim.AdamW" and "fused" not in cfg.optim.optimizer:
        # half of the step of a large vocabulary; fused, it unscales the gradients of 16-mixed too late
        OmegaConf.update(cfg, "optim.optimizer.fused", str(cfg.trainer.precision) not in ("16-mixed", "16"), force_add=True)
    rate = OmegaConf.select(cfg, "optim.optimizer.lr", default=0)
    if rate is not None:  # 0: the optimizer has none
        remark = kind.remark_on(rate) if rate and "Adam" in target else None
        return [remark] if remark else []
    cfg.optim.optimizer.lr = kind.learning_rate
    return [f"Learning rate {kind.learning_rate:g}, for {kind} (optim.optimizer.lr=… sets another)"]


def kind_of(cfg: DictConfig, encoder: Encoder) -> EncoderKind:
    """Tell what kind of encoder the config describes."""
    return EncoderKind(isinstance(encoder.backbone, StaticBackbone), bool(cfg.encoder.get("path")))


def _set_dims(cfg: DictConfig, size: int) -> None:
    settings = cfg.get("matryoshka")
    if not settings:
        return
    dims = settings.get("dims")
    if dims is None:
        given = [str(key) for key, value in settings.items() if value is not None]
        if given:
            raise InputError(f"matryoshka.{given[0]} needs sizes: add matryoshka.dims=[{size},…] or matryoshka=halves")
        cfg.matryoshka = None
    elif isinstance(dims, int):
        settings.dims = [dims]
    elif dims == _HALVES:
        settings.dims = [size >> n for n in range(_HALVINGS + 1) if not n or size >> n >= _SHORTEST]
    elif not isinstance(dims, ListConfig) or not all(type(dim) is int for dim in dims):
        raise InputError(f"matryoshka.dims={dims} must be sizes: [{size},{size // 2}], or {_HALVES}")
