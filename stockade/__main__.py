"""``python -m stockade`` is the ``stockade`` command."""

from stockade.cli import main

if __name__ == "__main__":
    main(prog_name="stockade")
