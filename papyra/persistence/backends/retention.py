"""Where users find the policy of a backend; it is plain data, which requests carry, too."""

from papyra.persistence.retention import RetentionPolicy

__all__ = ("RetentionPolicy",)
