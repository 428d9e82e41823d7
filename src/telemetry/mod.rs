//! Logs, trace context, metric registry.
