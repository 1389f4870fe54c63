"""The offload store: its format, the folder that holds it, and the process that writes it."""
