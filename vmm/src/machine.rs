//! The only place that knows every device: build, start, stop.
