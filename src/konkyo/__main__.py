"""`python -m konkyo`."""

from konkyo.apps.cli.main import main

main()
