"""HTTP: bodies, errors, deadlines and server-sent events, whatever the API."""
