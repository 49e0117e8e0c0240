"""``python -m spicebridge``: the command line."""

from spicebridge.cli.app import main

if __name__ == "__main__":
    main()
