"""Write the generated parts of the documentation: reference tables and the output of examples.

`python -m docs.generator` rewrites the pages in place; `make generate` runs it. A page is written
by hand except for two things:

- **Tables** between ``<!-- generated: NAME -->`` and ``<!-- end -->`` (`tables`, `command_line`).
- **Outputs of commands** in ``console`` blocks and after ``python`` blocks (`blocks`, `examples`).
  A curl command and a Python block run against a real server (`servers`), a ``predictor`` command
  runs in this process.

`tests/docs` compares the committed pages with a fresh generation.
"""
