"""Worker processes: one per device, with one backend per accelerator class."""
