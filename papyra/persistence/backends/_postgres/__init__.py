"""The rooms of the PostgreSQL backend."""

from papyra.exceptions import MissingExtra

try:
    import psycopg  # noqa: F401
except ImportError as error:
    raise MissingExtra(
        f"PostgreSQL needs psycopg 3 ({error}), which Papyra's extra 'postgres' brings: "
        "pip install '.[postgres]' in Papyra's checkout"
    ) from error
