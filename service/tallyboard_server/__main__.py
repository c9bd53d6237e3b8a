"""`python -m tallyboard_server`: the same as the `tallyboard-server` command."""

from tallyboard_server.cli import main

if __name__ == "__main__":
    main()
