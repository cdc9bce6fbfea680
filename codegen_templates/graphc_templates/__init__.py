"""Jinja2 templates for the emitted C (``c/``); a data package with nothing to run."""
