//! larder.v1, the operator's gRPC API.
