"""The command `msa`: the facade from a shell. Results go to stdout, everything else to stderr."""

from msa_plugin.cli.app import main

__all__ = ["main"]
