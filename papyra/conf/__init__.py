"""Settings: ``from papyra.conf import settings``; and stores, as URLs name them."""

from papyra.conf._settings import Settings, settings
from papyra.conf._store_urls import backend_from_url

__all__ = ("Settings", "backend_from_url", "settings")
