"""Routing: exact, tiled search over the routing keys."""
