"""A bucket that is a local folder, for the two libraries that read and write `gs://`.

The rules of a bucket hold: nothing can be appended to, and folders are not renamed.
"""

import contextlib
import os
from unittest import mock

from etils.epath import backend, gpath
from orbax.checkpoint._src.path import gcs_utils


class Bucket(backend._OsPathBackend):
    """epath's backend of `gs://` over a folder."""

    def __init__(self, root):
        self.root = root

    def local(self, path):
        path = os.fspath(path)
        return path.replace("gs://", f"{self.root}/", 1) if path.startswith("gs://") else path

    def remote(self, path):
        return path.replace(f"{self.root}/", "gs://", 1)

    def open(self, path, mode):
        assert mode in ("r", "rb", "w", "wb"), "objects are read and written whole"
        if "w" in mode:
            os.makedirs(os.path.dirname(self.local(path)), exist_ok=True)
        return super().open(self.local(path), mode)

    def glob(self, path):
        return [self.remote(found) for found in super().glob(self.local(path))]

    def walk(self, top, *, top_down=True, on_error=None):
        for folder, *rest in super().walk(self.local(top), top_down=top_down, on_error=on_error):
            yield self.remote(str(folder)), *rest

    def makedirs(self, path, *, exist_ok=False, mode=None):
        super().makedirs(self.local(path), exist_ok=True, mode=mode)

    def mkdir(self, path, *, exist_ok=False, mode=None):
        os.makedirs(self.local(path), exist_ok=True)

    def copy(self, path, dst, overwrite):
        super().copy(self.local(path), self.local(dst), overwrite)


for name in ("exists", "isdir", "listdir", "rmtree", "remove", "stat"):

    def call(self, path, name=name):
        return getattr(backend._OsPathBackend, name)(self, self.local(path))

    setattr(Bucket, name, call)

for name in ("rename", "replace"):

    def move(self, path, dst, name=name):
        return getattr(backend._OsPathBackend, name)(self, self.local(path), self.local(dst))

    setattr(Bucket, name, move)


@contextlib.contextmanager
def buckets(root):
    """Within it `gs://NAME/...` is `root/NAME/...`."""
    fake = Bucket(root)

    def arrays(path):
        return {"driver": "file", "path": fake.local(path)}

    with (
        mock.patch.dict(gpath._PREFIX_TO_BACKEND, {"gs": fake}),
        mock.patch.object(gpath, "_is_tf_installed", return_value=False),
        mock.patch.object(gpath, "_GCS_BACKENDS", frozenset({fake})),
        mock.patch.object(gcs_utils, "get_kvstore_for_gcs", arrays),
        mock.patch.object(gcs_utils, "is_hierarchical_namespace_enabled", return_value=False),
    ):
        yield fake
