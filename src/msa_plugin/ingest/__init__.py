"""Files and folders into documents: `read_paths` for any use, `add_files` into a memory."""

from msa_plugin.ingest.adding import FilesReport, add_files
from msa_plugin.ingest.reading import read_paths

__all__ = ["FilesReport", "add_files", "read_paths"]
