"""The offload store: a file with blocks as they are served, written once and shared by processes.

- `packing`: writes the store of a model, and measures whether the store pays.
- `folder`: the folder of stores: locks, stale stores, and marks of processes that use a store.
- `writer`: writes the file of one store.
- `format`: the layout of that file, and reading it.
- `served_weights`: whether a store is of the weights that are served now.
- `sources`, `digests`: the stamps of weight files, and their SHA-256.
- `locks`, `atomic`: locks on files, and small files that are written whole.
- `warmup_cache`: measurements of earlier starts, kept beside the store.

Whether blocks are read from the store is decided in `block_source`.
"""
