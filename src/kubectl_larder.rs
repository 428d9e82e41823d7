//! `kubectl larder`: a plugin of kubectl, found by its name.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::cluster::main()
}
