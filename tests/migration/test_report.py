"""The report for a terminal, and as Markdown that untrusted text cannot break."""

from __future__ import annotations

from predictor.migration.mapping import Row
from predictor.migration.report import Report

REPORT = Report(
    "bloom.mar",
    "/models/bloom",
    (
        Row("setup_config.json", "max_length", "80", "taken over", "the setting of this name"),
        Row("setup_config.json", "new|key", "`a` | <b>", "no counterpart", "not known"),
        Row("handler.py", "handle", "", "done otherwise", "one loop"),
    ),
    ("it is served with --allow_pickle only: say it if you trust its author",),
    ("predictor serve --model_dir /models/bloom --allow_pickle",),
)


def test_the_table_has_a_part_for_each_file() -> None:
    assert REPORT.table() == (
        """\
Imported bloom.mar into /models/bloom

setup_config.json
  key         value      outcome         what that means here
  max_length  80         taken over      the setting of this name
  new|key     `a` | <b>  no counterpart  not known

handler.py
  key     value  outcome         what that means here
  handle         done otherwise  one loop

1 taken over, 1 done otherwise, 1 no counterpart.
note: it is served with --allow_pickle only: say it if you trust its author
next:
  predictor serve --model_dir /models/bloom --allow_pickle"""
    )


def test_the_same_is_written_as_markdown() -> None:
    assert REPORT.markdown() == (
        """\
# bloom.mar, imported from TorchServe

1 taken over, 1 done otherwise, 1 no counterpart.

it is served with --allow_pickle only: say it if you trust its author

## setup_config.json

| key | value | outcome | what that means here |
|---|---|---|---|
| `max_length` | `80` | taken over | the setting of this name |
| `new\\|key` | `'a' \\| <b>` | no counterpart | not known |

## handler.py

| key | value | outcome | what that means here |
|---|---|---|---|
| `handle` |  | done otherwise | one loop |

## Next

```sh
predictor serve --model_dir /models/bloom --allow_pickle
```
"""
    )
