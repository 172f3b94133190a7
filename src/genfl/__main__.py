"""``python -m genfl`` is the command ``genfl``."""

from genfl.cli import main

main()
