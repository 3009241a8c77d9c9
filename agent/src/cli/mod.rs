//! The command line `mayfly`.
//!
//! It asks the agent over its socket, or, for what only an administrator may say, signs with the administrator's key and submits to the
//! ledger's gateway. It must never see a key, a shard or a root; PINs, passphrases and join tokens are read into locked memory and go on
//! in binary form, never in JSON.
//!
//! Exit status: 0 done, 1 refused or failed (the reason and the next step are on standard error; with --json as `error` and `next`),
//! 2 wrong use.

mod admin;
mod agent;
mod announce;
mod ask;
mod attest;
mod dev;
mod device;
mod init;
mod interrupt;
mod invite;
mod iv;
mod join;
mod key;
mod keyfile;
mod ledger;
mod plugin;
mod process;
mod software;
mod status;
mod token;
mod value;
mod vault;
mod vaults;
mod why;

use announce::{Announcer, WrongUse, advised};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Where an agent listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mayfly/agent.sock";

/// Exit status of wrong use, as clap has it.
const WRONG_USE: u8 = 2;

/// Keys that exist for one operation.
#[derive(Debug, Parser)]
#[command(name = "mayfly", version, max_term_width = 120, arg_required_else_help = true)]
#[command(after_help = "Example: a network on this machine, and a first key\n  \
    mayfly dev up --dir /tmp/net && . /tmp/net/env\n  \
    mayfly key create web --type ec:p256\n\n\
    Exit status: 0 done, 1 refused or failed, 2 wrong use.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Socket of the agent [env: MAYFLY_SOCKET] [default: /run/mayfly/agent.sock]
    // Not clap's `env`: with the variable set, each usage line would ask for the option.
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Global {
    fn socket(&self) -> PathBuf {
        self.socket.clone().or_else(|| variable("MAYFLY_SOCKET")).unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

/// A path from the environment; an empty one is none.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Invite(invite::Invite),
    Join(join::Join),
    #[command(subcommand)]
    Device(device::Device),
    Ban(device::Ban),
    #[command(subcommand)]
    Token(token::Token),
    #[command(subcommand)]
    Key(key::Key),
    Iv(iv::Iv),
    Status(status::Status),
    Why(why::Why),
    #[command(subcommand)]
    Vault(vaults::Vault),
    #[command(subcommand)]
    Ledger(ledger::Ledger),
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    #[command(subcommand)]
    Dev(dev::Dev),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Without a hardened process, passphrases and PINs could end in a core file: better not to ask for them.
    if let Err(error) = mayfly_secmem::harden_process() {
        eprintln!("mayfly: cannot protect this process: {error}");
        return ExitCode::FAILURE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|word| word == "--json") => {
            let text = error.render().to_string();
            let text = text.trim().trim_start_matches("error: ");
            Announcer::new(true).failure(&advised(text, "mayfly --help"));
            return WRONG_USE.into();
        }
        Err(error) => error.exit(),
    };
    let out = Announcer::new(cli.global.json);
    match run(cli, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.failure(&error);
            if error.is::<WrongUse>() { WRONG_USE.into() } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli, out: Announcer) -> anyhow::Result<()> {
    let socket = &cli.global.socket();
    match cli.command {
        Command::Init(c) => c.run(&out),
        Command::Invite(c) => c.run(&out),
        Command::Join(c) => c.run(&out),
        Command::Device(c) => c.run(&out, socket),
        Command::Ban(c) => c.run(&out),
        Command::Token(c) => c.run(&out, socket),
        Command::Key(c) => c.run(&out, socket),
        Command::Iv(c) => c.run(&out, socket),
        Command::Status(c) => c.run(&out, socket),
        Command::Why(c) => c.run(&out, socket),
        Command::Vault(c) => c.run(&out, socket),
        Command::Ledger(c) => c.run(&out, socket),
        Command::Plugin(c) => c.run(&out),
        Command::Dev(c) => c.run(&out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn every_command(command: &clap::Command, path: &str, check: &mut impl FnMut(&str, &clap::Command)) {
        let path = format!("{path} {}", command.get_name());
        check(&path, command);
        command.get_subcommands().for_each(|c| every_command(c, &path, check));
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        assert!(help.contains(&format!("[default: {DEFAULT_SOCKET}]")), "{help}");
    }

    #[test]
    fn each_help_tells_and_shows() {
        every_command(&Cli::command(), "", &mut |path, command| {
            assert!(command.get_about().is_some(), "{path} has no description");
            let example = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains("Example"), "{path} has no example");
            if command.get_subcommands().next().is_none() {
                let words = path.trim().to_owned();
                assert!(example.contains(&words), "the example of `{words}` does not use it");
            }
        });
    }

    /// What stands between backquotes in a source and starts with `mayfly `, as it is shown.
    fn named_commands(source: &str) -> Vec<String> {
        let parts = source.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
        parts.filter(|part| part.starts_with("mayfly ")).map(str::to_owned).collect()
    }

    #[test]
    fn every_command_that_a_text_names_exists() {
        use clap::error::ErrorKind::{
            DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument, MissingSubcommand,
        };
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let mut folders = vec![PathBuf::from(sources)];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                } else if entry.extension().is_some_and(|end| end == "rs") {
                    for command in named_commands(&std::fs::read_to_string(&entry).unwrap()) {
                        seen += 1;
                        let words = example_words(&command);
                        if let Err(error) = Cli::try_parse_from(&words) {
                            // A text may name a command without its arguments, but none that there is not.
                            let is_partial = [
                                DisplayHelp,
                                DisplayHelpOnMissingArgumentOrSubcommand,
                                MissingRequiredArgument,
                                MissingSubcommand,
                            ]
                            .contains(&error.kind());
                            assert!(is_partial, "{}: `{command}` as {words:?}: {error}", entry.display());
                        }
                    }
                }
            }
        }
        assert!(seen > 30, "only {seen} commands were found: does this test look at the right place?");
    }

    /// The words of a command in a format string: `{name}` stands for a word, and for nothing at the end of one.
    fn example_words(command: &str) -> Vec<String> {
        let mut words = Vec::new();
        for word in command.split_whitespace().take_while(|word| *word != "|") {
            // `a|b`: one of them.
            let word = word.split('|').next().unwrap_or(word);
            let bare = word.split_once('{').map_or(word, |(before, _)| before);
            match (bare, word.contains('{')) {
                ("", true) => words.push("x".to_owned()),
                (bare, _) => words.push(bare.to_owned()),
            }
        }
        words
    }

    #[test]
    fn wrong_use_is_told_apart() {
        for words in [
            &["mayfly", "nonsense"][..],
            &["mayfly", "key", "create"],
            &["mayfly", "key", "create", "k", "--type", "aes:100"],
            &["mayfly", "key", "create", "k", "--type", "aes:256", "--split", "4/3"],
            &["mayfly", "dev", "up"],
            &["mayfly", "iv"],
            &["mayfly", "iv", "--key", "k", "--length", "11"],
        ] {
            let error = Cli::try_parse_from(words).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
        }
    }
}
