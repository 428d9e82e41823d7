//! `larder crds`.

use std::io::{self, Write};

use super::Done;
use super::failure::Failure;
use crate::app::crds;

pub(super) const AFTER: &str = "\
Examples:
  larder crds | kubectl apply -f -
  larder crds | kubectl diff -f -";

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> Done {
    let yaml = crds::yaml().map_err(Failure::new)?;
    let mut out = io::stdout().lock();
    out.write_all(yaml.as_bytes())?;
    out.flush()?;
    Ok(())
}
