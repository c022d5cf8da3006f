"""The import path of a backend's retention policy; the policy itself is plain data."""

from papyra.persistence.retention import Limits, RetentionPolicy

__all__ = ("Limits", "RetentionPolicy")
