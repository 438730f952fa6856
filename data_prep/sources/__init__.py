"""Where clips come from: a file a kind of metadata, each with a `reader.Reader`."""

from data_prep.sources.clips import Clip, Found, Rejection, find_clips

__all__ = ["Clip", "Found", "Rejection", "find_clips"]
