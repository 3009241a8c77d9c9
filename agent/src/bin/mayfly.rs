//! `mayfly`: the command line; see [`mayfly_agent::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    mayfly_agent::cli::main()
}
