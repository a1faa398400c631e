"""`python -m umpack.cli`."""

from umpack.cli import main

main()
