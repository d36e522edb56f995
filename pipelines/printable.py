"""Text as a terminal may show it: what came from files cannot drive it."""


def printable(text: str) -> str:
    """The same text, control characters and other invisible ones written out; lines and tabs stay.

    Ids, names of columns and cells come from whoever wrote the files: an escape sequence in one of them would move the
    cursor, rename the window or hide what follows, wherever somebody reads a log.
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1]
        for character in text
    )
