"""What operators see of a system: health, metrics, traces and pictures."""
