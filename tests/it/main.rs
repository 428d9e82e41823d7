//! One integration binary: each further one would cost a link of the whole dependency tree.

mod erofs;
mod ingest;
mod support;
