"""`python train.py +experiment=quickstart`: the same as `acge train +experiment=quickstart`."""

from acge_lightning.commands.cli import call

if __name__ == "__main__":
    call("train", 1)
