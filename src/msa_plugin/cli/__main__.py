"""`python -m msa_plugin.cli` is `msa`."""

from msa_plugin.cli import main

main()
