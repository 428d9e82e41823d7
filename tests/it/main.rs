//! One integration binary: each further one would cost a link of the whole dependency tree.

mod erofs;
mod ingest;
mod licences;
mod support;
mod tidy;
