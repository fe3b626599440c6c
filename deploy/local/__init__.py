"""Genuine Kafka and Valkey on this machine: found, started, watched and ended."""
