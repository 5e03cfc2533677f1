"""Command line of `eval.probing.probe`."""

from eval.probing.probe import main

if __name__ == "__main__":
    main()
