"""The rooms of the backends that keep their records in files."""
