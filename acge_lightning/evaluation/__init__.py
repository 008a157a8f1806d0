"""Score encoders on folders of data sets, by the protocols of MTEB."""

from typing import TYPE_CHECKING

from acge_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from acge_lightning.evaluation.datasets import Dataset as Dataset
    from acge_lightning.evaluation.models import Model as Model
    from acge_lightning.evaluation.models import open_models as open_models
    from acge_lightning.evaluation.scoring import evaluate as evaluate

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    datasets="Dataset",
    models="Model open_models",
    scoring="evaluate",
)
