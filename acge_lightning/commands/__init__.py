"""The commands: what `python train.py` and `acge` run."""
