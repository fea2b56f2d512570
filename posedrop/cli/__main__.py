"""``python -m posedrop.cli``."""

from posedrop.cli import main

main()
