"""Tasks: a typed request becomes tokens, tokens become a typed response."""
