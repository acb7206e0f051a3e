"""The page: server-rendered status, studies and viewer, a JSON API, health and metrics."""
