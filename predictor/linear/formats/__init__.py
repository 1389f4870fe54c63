"""The formats in which the weights of linear layers are published, and how each is unpacked."""
