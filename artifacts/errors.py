"""The one error of the store."""


class ArtifactError(Exception):
    """An artifact is missing, damaged, of the wrong kind, or cannot be written. Always one sentence."""
