//! The larder binary: one program, several roles.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::main()
}
