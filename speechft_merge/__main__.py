"""`speechft-merge` and `python -m speechft_merge`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[
        0
    ]  # the working directory, a foreign model's perhaps, with a numpy.py of its own; this package is found


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:] == ["--version"]:  # answered before anything is imported
        from speechft_merge.version import __version__

        print(f"speechft-merge {__version__}")
        return
    from speechft_merge.cli.entry import run

    run()


if __name__ == "__main__":
    main()
