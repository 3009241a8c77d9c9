//! `mayfly-plugin-host`: holds one plugin in a process of its own; started by mayflyd, mayfly-ledger and mayfly.

fn main() -> std::process::ExitCode {
    mayfly_plugin_api::host::main()
}
