"""Memory bank on disk: SQLite catalog and immutable, memory-mapped segments."""
