//! `datum doctor`, `completions`, `man`

use super::support::{Sandbox, outcome};
use serde_json::Value;

#[test]
fn doctor_finds_data_sets_models_and_another_program_of_its_name() {
    let sandbox = Sandbox::new();
    for file in ["sets/camvid/images/x.png", "cache/models--org--model/refs/main", "bin/datum"] {
        sandbox.write(file, b"x");
    }
    let mut command = sandbox.datum("doctor --json");
    command.env("DATUM_DATASETS", "sets").env("HF_HUB_CACHE", "cache").env("PATH", sandbox.path("bin"));
    let found: Value = serde_json::from_str(&outcome(&mut command).stdout).unwrap();
    assert_eq!(found["datasets"]["camvid"], "sets/camvid");
    assert_eq!(found["datasets"]["gta"], Value::Null);
    assert_eq!(found["hub"]["models"], serde_json::json!(["org/model"]));
    assert!(found["warnings"][0].as_str().unwrap().contains("bin/datum"), "{found}");
    assert!(found["memory_bytes"].as_u64().unwrap() > 0 && found["threads"].as_u64().unwrap() > 0, "{found}");
    let text = sandbox.ok("doctor").stdout;
    assert!(text.contains("model cache") && text.contains("not found"), "{text}");
}

#[test]
fn the_self_test_finds_every_operation_right_on_the_processor() {
    let sandbox = Sandbox::new();
    let found: Value = serde_json::from_str(&sandbox.ok("doctor --self-test --device cpu --json").stdout).unwrap();
    let operations = found["operations"].as_array().unwrap();
    assert!(operations.len() > 15 && operations.iter().all(|row| row["ok"] == true), "{found}");
    assert_eq!((found["device"].as_str(), found["wrong"].as_u64()), (Some("cpu"), Some(0)));
    let text = sandbox.ok("doctor --self-test").stdout;
    assert!(text.contains("operations on cpu, 0 wrong"), "{text}");
    sandbox.fails("doctor --self-test --device cuda", 4, &["--device cuda:0"]);
}

#[test]
fn completions_and_manual_pages_know_every_verb() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = sandbox.ok(&format!("completions {shell}")).stdout;
        for word in ["personalize", "render-street", "guidance-scale"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    sandbox.fails("completions tcsh", 2, &["tcsh"]);
    sandbox.ok("man --output man1");
    let page = sandbox.text("man1/datum-dataset-check.1");
    assert!(page.contains(".TH datum-dataset-check 1") && page.contains("split"), "{page}");
    assert!(sandbox.has("man1/datum.1") && sandbox.has("man1/datum-personalize.1"));
    assert!(sandbox.ok("man").stdout.contains(".TH datum 1"));
}
