//! Wiring: configuration to running agent; the demo.
