"""What crosses a process boundary: records, plan, profile, names, codecs, limits and SLO definitions. Imports nothing of ours."""
