"""Where tapped requests go: Kafka, HTTP, Parquet, OpenTelemetry, and what others register as `headrace.tap_sinks`."""
