"""Plumbing for the notebooks: data, encoders, language models, report-generation systems, metrics and claims."""

__version__ = "0.1.0"
