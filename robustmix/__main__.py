"""``python -m robustmix``."""

from robustmix.cli import main

main()
