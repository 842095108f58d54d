"""`python -m pykcm`: the same as `kcm`."""

from pykcm.cli import main

main()
