"""Run the command line as `python -m simplu_worker`."""

from simplu_worker.cli import main

if __name__ == "__main__":
    main()
