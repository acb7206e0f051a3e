"""``python -m daemon``: the form that service units call, free of Debian's own ``daemon`` command."""

from daemon.cli import main

if __name__ == "__main__":
    main()
