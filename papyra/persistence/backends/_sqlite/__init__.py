"""The rooms of the SQLite backend."""
