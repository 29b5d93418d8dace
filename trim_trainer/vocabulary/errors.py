"""What a vocabulary cannot be made smaller for."""


class VocabularyError(ValueError):
    """Refused before anything is changed, or the result is not what it has to be; the message says why, and what helps."""
