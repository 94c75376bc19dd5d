//! `servin completion`: what a shell needs to complete verbs and flags.

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::{run, verb};

/// The verb.
pub(super) fn command() -> Command {
    Command::new("completion")
        .about("Print what a shell needs to complete verbs and flags")
        .after_help(
            "bash: servin completion bash > ~/.local/share/bash-completion/completions/servin\n\
             zsh:  servin completion zsh > \"${fpath[1]}/_servin\"\n\
             fish: servin completion fish > ~/.config/fish/completions/servin.fish",
        )
        .arg(Arg::new("shell").value_name("SHELL").required(true).value_parser(value_parser!(Shell)))
}

/// The script for the shell that was typed: of all that is built, without the flags that are refused.
pub(super) fn script(matches: &ArgMatches) -> String {
    let Some(shell) = matches.get_one::<Shell>("shell") else { return String::new() };
    let mut whole = verb::add(super::frame())
        .mut_subcommand("run", |_| run::built())
        .mut_subcommand("container", |group| group.mut_subcommand("run", |_| run::built()));
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut whole, "servin", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
