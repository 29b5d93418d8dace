"""The true cause of an error that libraries have wrapped, in one line."""


def tell(error: BaseException) -> str:
    """An error in one line, with what is at its root where its own words do not say that."""
    said, root = _line(error), _root(error)
    words = (getattr(root, "strerror", None) or _line(root)).rstrip(".")
    return said if words in said else f"{said.rstrip('.')} ({words})."


def _root(error: BaseException) -> BaseException:
    while (
        error.__cause__ is not None and type(error.__cause__).__name__ != "_RemoteTraceback"
    ):  # text of another process
        error = error.__cause__
    return error


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{str(error.filename)!r}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__
