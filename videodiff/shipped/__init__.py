"""Trained runs that come with videodiff: each folder here is a run with its settings and averaged weights alone."""
