"""Empty files under given names, for tests of which files are taken."""


def touched(folder, *names):
    """Make the files, and return their folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder
