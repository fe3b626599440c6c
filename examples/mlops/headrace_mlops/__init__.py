"""Detectors that read Headrace's taps: drift, attacks, and a report page; each an ordinary consumer, each one command."""
