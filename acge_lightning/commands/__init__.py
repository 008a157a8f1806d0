"""Run the commands of `python train.py` and `acge`."""
