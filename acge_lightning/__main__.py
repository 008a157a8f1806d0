"""`python -m acge_lightning …`: the same as `acge …`."""

from acge_lightning.commands.cli import main

if __name__ == "__main__":
    main()
