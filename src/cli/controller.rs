//! `larder controller`.

use std::process::ExitCode;

use super::Globals;
use super::failure::Failure;
use crate::app::controller::{self, ControllerArgs};

pub(super) const AFTER: &str = "\
Examples:
  larder controller                                      in a pod, with its service account
  larder controller --kubeconfig ~/.kube/config          anywhere, against any API server

Any number of replicas may run; a Lease says which one acts.";

/// The error is the configuration's; what goes wrong later is in the log.
pub(super) fn run(mut args: ControllerArgs, globals: &Globals) -> Result<ExitCode, Failure> {
    args.log_level = args.log_level.or_else(|| globals.server_level());
    controller::main(&args).map_err(Failure::usage)
}
