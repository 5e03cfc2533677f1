"""Command line of `eval.probing.zero_shot`."""

from eval.probing.zero_shot import main

if __name__ == "__main__":
    main()
