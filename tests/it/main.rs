//! One integration binary: each further one would cost a link of the whole dependency tree.

mod agent;
mod background;
mod bad_input;
mod cli;
mod cluster;
mod controller;
mod crash;
mod declared;
mod demo;
mod doors;
mod erofs;
mod ingest;
mod kube_api;
mod kube_install;
mod licences;
mod operation;
mod pull;
mod reach;
mod real;
mod registry;
mod runtime;
mod secrets;
mod support;
mod tidy;
mod wire;
