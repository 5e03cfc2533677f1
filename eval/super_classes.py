"""Command line of `eval.audit.super_classes`."""

from eval.audit.super_classes import main

if __name__ == "__main__":
    main()
