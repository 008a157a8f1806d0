"""`python train.py +experiment=quickstart`: the same as `acge train +experiment=quickstart`."""

from acge_lightning.cli import train

if __name__ == "__main__":
    train()
