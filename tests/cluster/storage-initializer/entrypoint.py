"""Downloads as KServe's storage-initializer does: `entrypoint.py URI FOLDER [URI FOLDER...]`."""

import os
import sys

from kserve_storage import Storage  # type: ignore[import-not-found]

uris, folders = sys.argv[1::2], sys.argv[2::2]
for folder in folders:
    os.makedirs(folder, exist_ok=True)
Storage.download_files(uris, folders)
