//! The `chiton` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(chiton::cli::main(std::env::args_os().skip(1)))
}
