"""The one exception type that means "the input is wrong, and here is how to mend it"."""


class InputError(ValueError):
    """Bad data, a bad configuration value or an unreadable file.

    The message names what is wrong, where it stands (file and line, or key) and the remedy. The command line prints it
    without a traceback.
    """


def check_unicode(text: str, name: str) -> None:
    r"""An error if a text holds half of a surrogate pair, which comes of cut JSON escapes and of bytes that are not UTF-8.

    It is no character, and no tokenizer and no file of ours takes it; what should stand there, only the user knows.

    >>> check_unicode("caf\udce9", "texts[3]")
    Traceback (most recent call last):
    acge_lightning.errors.InputError: texts[3] has half a surrogate pair at 3 of 'caf\udce9': mend it, or leave it out
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half a surrogate pair at {error.start} of {text!r:.60}"
        raise InputError(f"{name} has {found}: mend it, or leave it out") from None
