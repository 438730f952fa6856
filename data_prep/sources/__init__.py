"""Where clips come from: a file a kind of metadata, each a generator of `ClipRequest` and, of bad rows, `BadInput`."""

from data_prep.sources.clips import Clip, Found, Rejection, find_clips
from data_prep.sources.folder import read_folder
from data_prep.sources.hdvila import read_hdvila
from data_prep.sources.internvid import read_internvid
from data_prep.sources.koala import read_koala
from data_prep.sources.metadata.captions import CaptionIndex
from data_prep.sources.openvid import read_openvid
from data_prep.sources.panda import read_panda
from data_prep.sources.table import read_table
from data_prep.sources.webdataset import read_webdataset
from data_prep.sources.webvid import read_webvid

READERS = {
    "hdvila": read_hdvila,
    "panda": read_panda,
    "webvid": read_webvid,
    "openvid": read_openvid,
    "internvid": read_internvid,
    "koala": read_koala,
    "table": read_table,
    "folder": read_folder,
    "webdataset": read_webdataset,
}

__all__ = ["READERS", "CaptionIndex", "Clip", "Found", "Rejection", "find_clips"]
