"""Command line of `elm.saved.publish`."""

from elm.saved.publish import main

if __name__ == "__main__":
    main()
