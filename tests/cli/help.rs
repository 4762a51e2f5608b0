//! Help, usage, pipes.

use super::support::{Sandbox, checked};
use std::process::Stdio;

const VERBS: [&str; 16] = [
    "demo",
    "pretrain",
    "personalize",
    "generate",
    "adapt",
    "evaluate",
    "predict",
    "dataset",
    "report",
    "doctor",
    "completions",
    "man",
    "dataset render-street",
    "dataset check",
    "dataset show",
    "dataset prepare",
];

#[test]
fn every_verb_explains_itself_with_examples() {
    let sandbox = Sandbox::new();
    let help = sandbox.ok("--help").stdout;
    assert!(help.contains("The three stages:") && VERBS[..12].iter().all(|verb| help.contains(verb)), "{help}");
    for verb in VERBS {
        let help = sandbox.ok(&format!("{verb} --help"));
        assert!(help.stdout.contains("Examples:") && help.stdout.contains(&format!("datum {verb} ")), "{}", help.stdout);
        assert_eq!(help.stderr, "");
    }
}

#[test]
fn without_a_verb_the_help_is_shown_and_the_usage_is_wrong() {
    let sandbox = Sandbox::new();
    sandbox.fails("", 2, &["The three stages:", "Usage: datum"]);
    sandbox.fails("personalise x.png", 2, &["unrecognized subcommand", "personalize"]);
    sandbox.fails("adapt --sourc x", 2, &["unexpected argument", "--source"]);
    sandbox.fails("evaluate --dataset set.toml", 2, &["--checkpoint"]);
    sandbox.fails("predict --checkpoint x --output y", 2, &["IMAGE|FOLDER"]);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let sandbox = Sandbox::new();
    for line in ["--help", "generate --prompts things.txt --model base --steps 1 --count 1 --json"] {
        let mut child = sandbox.datum(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(checked(child).status.code(), Some(0), "{line}");
    }
    // Where even the error cannot be said, the exit code still tells.
    let mut child = sandbox.datum("generate --prompts nowhere.txt --model base").stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(checked(child).status.code(), Some(3));
}
