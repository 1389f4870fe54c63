"""The engine in a process of its own, and the way to it from the process that answers requests.

One process speaks with clients: it decodes, tokenises, detokenises and encodes. The other has
torch, the weights and the model thread. Neither waits for the other's interpreter lock, so clients
do not slow the model down, and the model does not delay a health check.

- `messages`: everything that one process tells the other.
- `channel`: a socket that carries them.
- `client`: the engine as the tasks see it, in the process that answers requests.
- `host`: the engine's side of the channel.
- `heat_report`: how often experts are used, for the other process to show.
"""
