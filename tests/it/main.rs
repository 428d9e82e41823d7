//! One integration binary: each further one would cost a link of the whole dependency tree.

mod agent;
mod cli;
mod cluster;
mod crash;
mod demo;
mod doors;
mod erofs;
mod ingest;
mod licences;
mod operation;
mod prepulls;
mod pull;
mod real;
mod registry;
mod support;
mod tidy;
mod wire;
