//! `datum completions`, `datum man`, and the reference pages: all from the definitions that parse the flags.

use super::common::DisplayArgs;
use crate::base::{Error, Result};
use crate::io::atomic;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::Write;
use std::path::PathBuf;

/// Print a script that completes commands and flags in your shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum completions bash > ~/.local/share/bash-completion/completions/datum\n  \
                        datum completions zsh > ~/.zfunc/_datum\n  \
                        datum completions fish > ~/.config/fish/completions/datum.fish")]
pub struct CompletionsArgs {
    /// bash, zsh, fish, powershell or elvish
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

/// Write manual pages, one per verb
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  datum man --output ~/.local/share/man/man1\n  datum man")]
pub struct ManArgs {
    /// Folder for the pages [default: print that of the program itself]
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    display: DisplayArgs,
}

/// Runs `completions` for the program `command`.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let mut script = Vec::new();
    let name = command.get_name().to_string();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print(&script)
}

/// Runs `man` for the program `command`.
pub fn man(args: &ManArgs, command: Command) -> Result<()> {
    let pages = man_pages(command)?;
    let Some(output) = &args.output else { return print(&pages[0].1) };
    for (name, page) in &pages {
        atomic::write(&output.join(name), page)?;
    }
    let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
    args.display.result(&serde_json::json!({ "folder": output.display().to_string(), "pages": names }), || {
        format!("{}", output.display())
    })
}

fn print(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output", e)),
        _ => Ok(()),
    }
}

/// File name and text of the pages of a program: its own first, then one per verb, `datum-dataset-check` for verbs of verbs.
fn man_pages(command: Command) -> Result<Vec<(String, Vec<u8>)>> {
    let mut pages = Vec::new();
    for (words, command) in verbs(command) {
        let (name, mut page) = (format!("{}.1", words.join("-")), Vec::new());
        // Section 1 of the manual is that of programs.
        let made = clap_mangen::Man::new(command).section("1").render(&mut page);
        made.map_err(|e| Error::io(&name, e))?;
        pages.push((name, page));
    }
    Ok(pages)
}

/// The program and all its verbs, each with the words that call it.
pub fn verbs(mut command: Command) -> Vec<(Vec<String>, Command)> {
    command.build();
    let mut found = Vec::new();
    let mut waiting = vec![(vec![command.get_name().to_string()], command)];
    while let Some((words, command)) = waiting.pop() {
        let below = command.get_subcommands().filter(|verb| verb.get_name() != "help");
        let longer = |verb: &Command| [words.as_slice(), &[verb.get_name().to_string()]].concat();
        let below: Vec<_> = below.map(|verb| (longer(verb), verb.clone())).collect();
        waiting.extend(below.into_iter().rev());
        found.push((words, command));
    }
    found
}

/// Name and text of the reference pages: the full help of every verb, and of verbs with a recipe all its keys.
///
/// `defaults` gives the TOML of the default settings of a program and its verb.
#[cfg(test)]
pub fn reference(command: Command, defaults: &dyn Fn(&[String]) -> Option<String>) -> Vec<(String, String)> {
    let page = |(words, command): (Vec<String>, Command)| {
        let help = command.term_width(110).render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let mut text = format!("# {}\n\n```text\n{}\n```\n", words.join(" "), help.join("\n"));
        if let Some(keys) = defaults(&words) {
            text += &format!("\n## Recipe keys with their defaults\n\n```toml\n{}\n```\n", keys.trim_end());
        }
        (format!("{}.md", words.join("-")), text)
    };
    verbs(command).into_iter().map(page).collect()
}
