//! /metrics, /livez, /readyz over HTTP.
