//! Prompt lists: from the grammar, and from servers that are slow, broken, lying, or all of it.

#[path = "support/chat.rs"]
mod chat;

use chat::{Chat, Reply, TOKENS};
use datum::base::Result;
use datum::base::progress::Silent;
use datum::prompting::{ClassSet, PromptFile};
use datum::systems::clouds::config::PromptsConfig;
use datum::systems::clouds::prompts::{self, Written};
use datum::train::run_dir::RunDir;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

const KEY: &str = "sk-a-secret-of-mine";

fn run(folder: &Path, config: &PromptsConfig) -> Result<Written> {
    let run = RunDir::create(Some(folder), folder, "").or_else(|_| RunDir::open(folder))?;
    run.write_recipe("")?;
    prompts::run(config, &run, Some(KEY.into()), &Silent)
}

fn lines(folder: &Path, name: &str) -> Vec<String> {
    std::fs::read_to_string(folder.join(name)).unwrap().lines().map(String::from).collect()
}

fn records(folder: &Path, name: &str) -> Vec<Value> {
    lines(folder, name).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn served(chat: &Chat, count: usize) -> PromptsConfig {
    let mut config = PromptsConfig { llm: format!("openai:{}", chat.url), count, ..PromptsConfig::default() };
    (config.server.pause, config.server.timeout) = (0.01, 20.0);
    config
}

/// Share of prompts that have the same three words in a row as an earlier one for at least half of all such triples of both.
/// Another measure than the one the list was made with.
fn near_duplicates(prompts: &[String]) -> f64 {
    let triples = |text: &String| {
        let words: Vec<String> = text.to_lowercase().split_whitespace().map(String::from).collect();
        words.windows(3).map(|three| three.join(" ")).collect::<BTreeSet<_>>()
    };
    let sets: Vec<BTreeSet<String>> = prompts.iter().map(triples).collect();
    let similar = |a: &BTreeSet<String>, b: &BTreeSet<String>| 2 * a.intersection(b).count() >= a.union(b).count();
    let repeated = (0..sets.len()).filter(|&at| sets[..at].iter().any(|earlier| similar(earlier, &sets[at])));
    repeated.count() as f64 / prompts.len() as f64
}

#[test]
fn a_thousand_prompts_of_the_grammar_are_valid_different_and_balanced() {
    let dir = tempfile::tempdir().unwrap();
    let config = PromptsConfig { count: 1000, ..PromptsConfig::default() };
    let written = run(&dir.path().join("one"), &config).unwrap();
    println!("{written:?}");
    assert_eq!(written.count, 1000);
    assert!(written.valid >= 0.95, "{written:?}");
    let prompts = lines(&dir.path().join("one"), "prompts.txt");
    assert_eq!(prompts.iter().collect::<BTreeSet<_>>().len(), 1000);
    let repeated = near_duplicates(&prompts);
    println!("near-duplicates by triples of words: {repeated}");
    assert!(repeated < 0.02, "{repeated}");

    let manifest = records(&dir.path().join("one"), "prompts.jsonl");
    let mut classes: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, (record, prompt)) in manifest.iter().zip(&prompts).enumerate() {
        assert_eq!((record["index"].as_u64(), record["prompt"].as_str()), (Some(index as u64), Some(prompt.as_str())));
        assert_eq!(record["blake3"].as_str().unwrap(), blake3::hash(prompt.as_bytes()).to_hex().as_str());
        assert_eq!(record["source"], "template:1");
        *classes.entry(record["class"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(classes.len(), 19);
    assert!(classes.values().max().unwrap() - classes.values().min().unwrap() <= 1, "{classes:?}");
    let first: BTreeSet<&str> = manifest[..19].iter().map(|record| record["class"].as_str().unwrap()).collect();
    assert_eq!(first.len(), 19, "classes take turns");
    let rejected = records(&dir.path().join("one"), "rejected.jsonl");
    assert_eq!(written.tally.lines, 1000 + rejected.len());
    assert!(rejected.iter().all(|record| !record["reason"].as_str().unwrap().is_empty()));

    // The generator reads it; the same settings write the same bytes, another seed others.
    let folder = dir.path().join("one").display().to_string();
    assert_eq!(PromptFile::open(&folder).unwrap().expand("sks", ClassSet::Things).unwrap().all(), prompts);
    run(&dir.path().join("two"), &config).unwrap();
    assert_eq!(lines(&dir.path().join("two"), "prompts.txt"), prompts);
    run(&dir.path().join("three"), &PromptsConfig { seed: 1, ..config }).unwrap();
    let other: BTreeSet<String> = lines(&dir.path().join("three"), "prompts.txt").into_iter().collect();
    assert!(prompts.iter().filter(|prompt| other.contains(*prompt)).count() < 10);
}

#[test]
fn the_shipped_list_is_what_the_defaults_write() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &PromptsConfig::default()).unwrap();
    let shipped = PromptFile::open("street.txt").unwrap().expand("sks", ClassSet::None).unwrap();
    assert_eq!(lines(dir.path(), "prompts.txt"), shipped.all());
}

#[test]
fn troubles_of_a_server_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let calm = Chat::start(&[], Reply::Slow(Duration::from_millis(20)));
    let mut config = served(&calm, 1000);
    let written = run(&dir.path().join("calm"), &config).unwrap();
    assert!(written.valid >= 0.95, "{written:?}");
    let seen = calm.seen.lock().unwrap();
    assert!(seen.most <= 4 && seen.most > 1, "{} requests at a time", seen.most);
    let (head, body) = &seen.requests[0];
    assert!(head.to_lowercase().contains(&format!("authorization: bearer {KEY}")), "{head}");
    assert_eq!(body["messages"][0]["role"], "system");
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["messages", "temperature", "max_tokens", "seed"], "a model that was not named is not sent");

    let slow = || Reply::Slow(Duration::from_millis(300));
    let script = [
        Reply::Status(429, "Retry-After: 0\r\n", "{\"error\": {\"message\": \"slow down\"}}"),
        Reply::Status(500, "", ""),
        Reply::Close,
        slow(),
        Reply::Half,
        Reply::Body("<html>it works</html>".into()),
        Reply::Body("{\"choices\": []}".into()),
        Reply::Body("{\"error\": \"overloaded\"}".into()),
        Reply::Body("{\"choices\": [{\"message\": {\"content\": null}}]}".into()),
        slow(),
        Reply::Body("x".repeat(5 << 20)),
        Reply::Status(503, "Retry-After: soon\r\n", "busy"),
        slow(),
    ];
    let rough = Chat::start(&script, Reply::Good);
    config.llm = format!("openai:{}", rough.url);
    config.server.attempts = 14;
    run(&dir.path().join("rough"), &config).unwrap();
    assert_eq!(lines(&dir.path().join("rough"), "prompts.txt"), lines(&dir.path().join("calm"), "prompts.txt"));
    assert_eq!(rough.requests(), seen.requests.len() + 10, "each trouble costs one attempt");
}

#[test]
fn a_server_that_hangs_or_refuses_is_given_up_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let hanging = Chat::start(&[], Reply::Hang);
    let mut config = served(&hanging, 19);
    (config.server.timeout, config.server.attempts) = (0.2, 2);
    let start = Instant::now();
    let error = run(&dir.path().join("hang"), &config).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("no answer in time (2 attempts)"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));

    for (reply, part) in [
        (Reply::Status(401, "", ""), "the key in `OPENAI_API_KEY` is missing or not accepted"),
        (
            Reply::Status(404, "", "{\"error\": \"no model sk-a-secret-of-mine\"}"),
            "status 404 Not Found {\"error\": \"no model [key]\"}",
        ),
        (Reply::Status(400, "", "max_tokens is not\n supported"), "max_tokens is not supported"),
    ] {
        let refusing = Chat::start(&[], reply);
        let mut config = served(&refusing, 19);
        config.server.concurrency = 1;
        let error = run(&dir.path().join("refused"), &config).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(refusing.requests(), 1, "nothing that cannot help is tried again");
    }
    let nobody = "openai:http://127.0.0.1:9/v1".to_string();
    let mut config = PromptsConfig { llm: nobody, count: 19, ..config };
    (config.server.timeout, config.server.pause) = (5.0, 0.01);
    let error = run(&dir.path().join("nobody"), &config).unwrap_err();
    assert!(error.exit_code() == 4 && error.to_string().contains("no connection"), "{error}");
    for url in ["localhost:8080", "ftp://x/v1", "http://", "http://me:secret@localhost/v1", "http://me@localhost/v1"] {
        let error = run(&dir.path().join("url"), &PromptsConfig { llm: format!("openai:{url}"), ..config.clone() }).unwrap_err();
        assert!(error.exit_code() == 2 && !error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn lies_are_rejected_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let lying = Chat::start(&[], Reply::Lies);
    let mut config = served(&lying, 190);
    run(dir.path(), &config).unwrap();
    let prompts = lines(dir.path(), "prompts.txt");
    assert_eq!(prompts.len(), 190);
    assert!(near_duplicates(&prompts) < 0.02);
    let reasons: String = records(dir.path(), "rejected.jsonl").iter().map(|record| format!("{}\n", record["reason"])).collect();
    for part in [
        "holds `!`",
        "was cut off",
        "says nearly the same as",
        "names no word for the class",
        "holds `\u{e9}`",
        "does not begin with",
    ] {
        assert!(reasons.contains(part), "{part}\n{reasons}");
    }

    // A server that says only nonsense ends the work, with everything it said on file.
    let mad = Chat::start(&[], Reply::Says("All work and no play makes a dull prompt\n".repeat(30)));
    config.llm = format!("openai:{}", mad.url);
    (config.rounds, config.count) = (2, 19);
    let folder = dir.path().join("mad");
    let error = run(&folder, &config).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    for part in ["rejected.jsonl", "19 usable prompts in 2 rounds", "0 in 1140 lines", "road, sidewalk"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(lines(&folder, "rejected.jsonl").len(), 1140);
    assert!(!folder.join("prompts.txt").exists());
}

#[test]
fn the_budget_holds_and_nothing_is_asked_twice() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&[], Reply::Good);
    let mut config = served(&chat, 100);
    config.budget = 10_000;
    let error = run(dir.path(), &config).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("of 10000 tokens") && error.to_string().contains("--budget"), "{error}");
    let first = chat.requests();
    assert!(first >= 8 && first as u64 * TOKENS <= 10_000, "{first} requests");
    assert!(!dir.path().join("prompts.txt").exists());
    let error = run(dir.path(), &config).unwrap_err();
    assert!(error.exit_code() == 4 && chat.requests() == first, "what was spent is remembered");

    config.budget = 0;
    run(dir.path(), &config).unwrap();
    let all = chat.requests();
    run(dir.path(), &config).unwrap();
    assert_eq!(chat.requests(), all, "every answer is kept");
    let fresh = Chat::start(&[], Reply::Good);
    config.llm = format!("openai:{}", fresh.url);
    run(&dir.path().join("whole"), &config).unwrap();
    assert_eq!(fresh.requests(), all, "pieces ask for as much as one run");
    assert_eq!(lines(&dir.path().join("whole"), "prompts.txt"), lines(dir.path(), "prompts.txt"));

    // Another model's answers are other answers.
    config.model = "bigger".into();
    run(&dir.path().join("whole"), &config).unwrap();
    assert_eq!(fresh.requests(), 2 * all);
    assert_eq!(fresh.seen.lock().unwrap().requests[all].1["model"], "bigger");
    // So are answers of another temperature or length.
    config.temperature = 0.5;
    run(&dir.path().join("whole"), &config).unwrap();
    config.max_tokens += 1;
    run(&dir.path().join("whole"), &config).unwrap();
    assert_eq!(fresh.requests(), 4 * all);
}

#[test]
fn a_count_of_tokens_that_cannot_be_ends_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let lie = r#"{"choices": [{"message": {"content": "A road"}}], "usage": {"total_tokens": 18446744073709551615}}"#;
    let chat = Chat::start(&[], Reply::Body(lie.into()));
    let mut config = served(&chat, 100);
    (config.budget, config.server.concurrency) = (100_000, 1);
    for _ in 0..2 {
        let error = run(dir.path(), &config).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("of 100000 tokens"), "{error}");
        assert_eq!(chat.requests(), 1);
    }
}

#[test]
fn the_key_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let chat = Chat::start(&[Reply::Says(format!("your key is {KEY}"))], Reply::Good);
    run(dir.path(), &served(&chat, 19)).unwrap();
    let mut files = 0;
    for entry in
        walkdir::WalkDir::new(dir.path()).into_iter().map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_file())
    {
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(KEY), "{}", entry.path().display());
        files += 1;
    }
    assert!(files > 20);
}

#[test]
fn a_preview_asks_nothing() {
    let chat = Chat::start(&[], Reply::Good);
    let shown = prompts::preview(&PromptsConfig { model: "m".into(), ..served(&chat, 100) }).unwrap();
    assert_eq!(shown["url"], format!("{}/chat/completions", chat.url));
    assert_eq!((shown["requests"].as_u64(), shown["first"]["model"].as_str()), (Some(19), Some("m")));
    assert!(shown["most_tokens"].as_u64().unwrap() > 19 * 1500);
    assert_eq!(chat.requests(), 0);
    for url in ["http://host/v1?key=k", "http://host/v1/?key=k", "http://host/v1/chat/completions?key=k"] {
        let shown = prompts::preview(&PromptsConfig { llm: format!("openai:{url}"), ..served(&chat, 19) }).unwrap();
        assert_eq!(shown["url"], "http://host/v1/chat/completions?key=k");
    }
    let shown = prompts::preview(&PromptsConfig::default()).unwrap();
    assert!(shown["answer"][0].as_str().unwrap().starts_with("A "), "{shown}");
    for llm in ["gpt", "gguf:", "openai:", "template:x"] {
        assert_eq!(prompts::preview(&PromptsConfig { llm: llm.into(), ..PromptsConfig::default() }).unwrap_err().exit_code(), 2);
    }
}
