"""Run `python -m data.measure`."""

from data.measure.command import main

if __name__ == "__main__":
    main()
