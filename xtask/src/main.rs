//! `cargo xtask`: the project's own commands, from a fresh clone to the figures in `docs/PERFORMANCE.md`.
//!
//! It depends on the standard library and `anyhow` only, so that it builds in a second before anything else is there. It must
//! never hold logic of Mayfly itself: what it shows and checks, it shows and checks with the built programs and with others' tools.
#![forbid(unsafe_code)]

mod bench;
mod nightly;
mod packages;
mod python;
mod quickstart;
mod run;
mod test;
mod tree;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  quickstart   from nothing to a file encrypted by a key that exists nowhere: packages, build, network, story
  test         what CI runs: packages, format, lints, docs, build, all tests
  bench        measures what the project promises, and writes docs/PERFORMANCE.md
  nightly      the long runs: property tests, whole-system tests again and again, the vault in C under sanitizers, figures

Each does all its set-up on a Debian 12 machine with Rust.
Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong use.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["quickstart"] => quickstart::run(),
        ["test", filter @ ..] => test::run(filter),
        ["bench"] => bench::run(),
        ["nightly"] => nightly::run(),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
