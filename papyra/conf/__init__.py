"""Settings: ``from papyra.conf import settings``."""

from papyra.conf._settings import Settings, settings

__all__ = ("Settings", "settings")
