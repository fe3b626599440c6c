"""Workloads: when requests come and what they ask for, from seeded generators. Pure."""
