"""Weights straight from the hub, a bucket or a web server, without a whole second copy on disk.

- `source`: the files of a source, and how they are read.
- `hub_source`, `web_source`, `s3_source`: the sources; `web_reader` reads ranges over HTTP.
- `uri_source`: the one that a URI names.
- `mirror`: the local folder of one revision, with its small files and its shards.
- `revisions`: the folders of the revisions of a source.
- `shard`: a file of weights that looks whole, and holds what was fetched and not released.
- `ranges`: fetches ranges of a file side by side, and tries again.
- `opened`: the file as transformers reads it, whose tensors are fetched when they are read.
"""
