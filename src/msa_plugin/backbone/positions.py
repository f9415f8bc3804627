"""Where a document's token ends up: its window, its position in it, and its chunk (golden spec sections 2 and 3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WindowLayout:
    """Documents are cut into windows of `window` tokens, the first `prefix` and last `suffix` of which are ours.

    Every window is encoded alone at positions from 0, so a document's later windows repeat the positions of its first.
    """

    window: int
    prefix: int
    suffix: int = 0

    @property
    def text(self) -> int:
        """Tokens of text in a full window."""
        return self.window - self.prefix - self.suffix

    def position(self, token: int) -> int:
        """Position of text token `token` (0-based) inside its window."""
        return self.prefix + token % self.text

    def chunk_of_token(self, token: int, pooling: int) -> int:
        """Index, within the document, of the chunk of `pooling` tokens that holds text token `token`."""
        return token // self.text * self.chunks_per_window(pooling) + self.position(token) // pooling

    def token_of_chunk(self, chunk: int, pooling: int) -> int:
        """First text token of chunk `chunk`."""
        window, inside = divmod(chunk, self.chunks_per_window(pooling))
        return window * self.text + max(0, inside * pooling - self.prefix)

    def chunks_per_window(self, pooling: int) -> int:
        """Chunks of a full window."""
        return -(-self.window // pooling)
