"""Weights: from files to devices. This room acts on a placement, and decides no placement.

A map of the room, from the top:

- `loader`: loads a model as a placement says. It is the entrance.
- `block_source`: decides for each start whether streamed blocks are read from the offload store or
  from the checkpoint in place, and whether a store is written. (`store.packing` writes it.)
- `from_pretrained`: has transformers load the parts that are not streamed from a store.
- `converted`: the folder of weights that transformers must write anew to stream them.
- `resident`: copies the weights that stay in main memory into anonymous memory.
- `audit`: compares the memory that loading took with the plan.
- `store`: the offload store, a file with blocks as they are served.
- `experts`: decides which experts of a mixture stay in memory.
- `streaming`: fetches blocks ahead of their use, and gives them to the model.
- `direct_io`: reads blocks past the page cache. `store` and `streaming` both read with it.
- `extents`: the bytes of files that hold each block's tensors.
- `progress`: counts what is loaded.
"""
