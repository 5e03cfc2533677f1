"""Command line of `eval.probing.vocabulary`."""

from eval.probing.vocabulary import main

if __name__ == "__main__":
    main()
