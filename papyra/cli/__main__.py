"""``python -m papyra.cli``."""

from papyra.cli import main

if __name__ == "__main__":
    main()
