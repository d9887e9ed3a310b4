"""`python -m mm_assets` is `mm`."""

from mm_assets.cli import main

main()
