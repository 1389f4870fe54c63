"""The page in the browser: what the model does now, and a playground for requests."""
