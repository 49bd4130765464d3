"""`python -m lladav`, for where the command is not on the path."""

from lladav.cli import main

main()
