//! One integration binary: each further one would cost a link of the whole dependency tree.

mod agent;
mod doors;
mod erofs;
mod support;
mod wire;
