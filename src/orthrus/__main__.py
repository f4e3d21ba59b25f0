"""`python -m orthrus`: the command line."""

from orthrus.cli import main

if __name__ == "__main__":
    main()
