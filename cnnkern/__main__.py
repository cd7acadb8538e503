"""Run the command line: ``python -m cnnkern train|predict|evaluate|info``."""

from cnnkern.cli import main

if __name__ == "__main__":
    main()
