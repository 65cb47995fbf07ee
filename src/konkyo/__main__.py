"""`python -m konkyo`."""

from konkyo.apps.cli import main

main()
