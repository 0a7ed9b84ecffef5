"""What reads a holder's own text, and nothing else does: it has no network."""
