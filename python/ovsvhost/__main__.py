"""``python -m ovsvhost``: the same as the ``ovsvhost`` program, of this very interpreter."""

from ovsvhost.cli import main

main()
