"""Load on a running server, and honest reports of what it did. Uses the client only, as any caller would."""
