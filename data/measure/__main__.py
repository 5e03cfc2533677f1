"""The command line: `python -m data.measure RECORD...`."""

from data.measure.worker import main

if __name__ == "__main__":
    main()
