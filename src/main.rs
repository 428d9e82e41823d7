//! The `larder` binary: agent and terminal in one.

fn main() -> std::process::ExitCode {
    larder::cli::main(std::env::args_os())
}
