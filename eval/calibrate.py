"""Command line of `eval.audit.calibrate`."""

from eval.audit.calibrate import main

if __name__ == "__main__":
    main()
