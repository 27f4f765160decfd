"""The form of errors about settings, shared by the neighbouring systems. Not here: what is allowed."""


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raises ValueError with the setting that was given and what it takes, unless the condition holds."""
    if not holds:
        raise ValueError(f"got {name}={value}; it takes {allowed}")
