"""Command line of `eval.audit.run`."""

from eval.audit.run import main

if __name__ == "__main__":
    main()
