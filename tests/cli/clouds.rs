//! The `clouds` program: prompt lists, and images from them.

use super::chat::{Chat, Reply};
use super::support::{Sandbox, checked, outcome};
use datum::io::png_text;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn clouds(sandbox: &Sandbox, line: &str) -> Command {
    let mut command = sandbox.command(env!("CARGO_BIN_EXE_clouds"));
    command.args(line.split_whitespace());
    command
}

fn ok(sandbox: &Sandbox, line: &str) -> String {
    let outcome = outcome(&mut clouds(sandbox, line));
    assert_eq!(outcome.status.code(), Some(0), "clouds {line}\n{}", outcome.stderr);
    outcome.stdout
}

#[test]
fn prompts_become_images() {
    let sandbox = Sandbox::new();
    let said = ok(&sandbox, "prompts --count 40 --output list --json");
    assert!(said.contains("\"count\":40") && said.contains("\"valid\":1.0"), "{said}");
    let recipe = sandbox.text("list/recipe.toml");
    assert!(recipe.contains("count = 40  # `--count`") && recipe.contains("llm = \"template\"  # default"), "{recipe}");
    let prompts = sandbox.text("list/prompts.txt");
    let prompts: Vec<&str> = prompts.lines().collect();
    assert_eq!(prompts.len(), 40);

    ok(&sandbox, "generate --prompts list --model base --steps 2 --count 42 --seed 5 --output made");
    let images = sandbox.contents("made/images");
    assert_eq!(images.len(), 42);
    for (j, k) in [(0, 0), (39, 39), (41, 1)] {
        let facts = png_text::read_facts(&sandbox.path(&format!("made/images/im_{j}_p{k}.png"))).unwrap().unwrap();
        assert_eq!(facts.prompt, prompts[k]);
        assert_eq!((facts.scheduler.as_str(), facts.guidance_scale, facts.seed), ("euler", 7.5, 5 + j));
    }
    let recipe = sandbox.text("made/recipe.toml");
    for part in ["scheduler = \"euler\"  # recipe clouds-sd2", "steps = 2  # `--steps`"] {
        assert!(recipe.contains(part), "{part}\n{recipe}");
    }
    // One engine: the other program makes the same images when told the same.
    sandbox.ok("generate --prompts list --recipe clouds-sd2 --model base --steps 2 --count 42 --seed 5 --output same");
    assert!(sandbox.contents("same/images") == images);
    let default = ok(&sandbox, "generate --model base --steps 1 --count 1");
    assert!(sandbox.has(default.trim()), "the shipped list without `--prompts`: {default}");
}

#[test]
fn a_dry_run_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    let before = sandbox.files();
    let shown = ok(&sandbox, "prompts --llm openai:http://127.0.0.1:1/v1 --model m --dry-run");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((shown["first"]["model"].as_str(), shown["requests"].as_u64()), (Some("m"), Some(19)));
    ok(&sandbox, "prompts --dry-run --json");
    assert_eq!(sandbox.files(), before);
}

#[test]
fn wrong_prompts_commands_say_what_would_be_right() {
    let sandbox = Sandbox::new();
    for (line, code, parts) in [
        ("prompts --llm chatty", 2, &["--llm chatty", "template, gguf:FILE or openai:URL"][..]),
        ("prompts --count 0", 2, &["`count` is 0"]),
        ("prompts --set lins=4", 2, &["unknown key `lins`", "`lines`"]),
        ("prompts --llm gguf:none.gguf", 3, &["none.gguf"]),
        ("prompts --set grammar=none.toml", 3, &["none.toml"]),
        ("generate --model nowhere --prompts street.txt", 3, &["nowhere"]),
        ("personalize", 2, &["unrecognized subcommand"]),
        ("pretrain --images photos", 2, &["photos with captions", "--captions FILE"]),
    ] {
        outcome(&mut clouds(&sandbox, line)).failed(line, code, parts);
    }
    let help = ok(&sandbox, "prompts --help");
    assert!(help.contains("Examples:") && help.contains("OPENAI_API_KEY"), "{help}");
}

#[test]
fn ctrl_c_keeps_answers_and_the_same_command_goes_on() {
    let sandbox = Sandbox::new();
    let whole = Chat::start(&[], Reply::Good);
    ok(&sandbox, &format!("prompts --llm openai:{} --count 100 --output whole", whole.url));
    let cut = Chat::start(&vec![Reply::Good; 8], Reply::Hang);
    let line = format!("prompts --llm openai:{} --count 100 --output cut", cut.url);
    let child =
        clouds(&sandbox, &line).env("OPENAI_API_KEY", "sk-mine").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while !sandbox.has("cut/answers") || sandbox.contents("cut/answers").len() < 8 {
        assert!(start.elapsed() < Duration::from_secs(60), "no answers");
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    checked(child).failed("SIGINT", 130, &["interrupted", "--output cut"]);
    assert!(!sandbox.has("cut/prompts.txt"));

    let asked = cut.requests();
    drop(cut);
    let rest = Chat::start_at(&line_url(&line), &[], Reply::Good);
    ok(&sandbox, &line);
    assert_eq!(rest.requests() + 8, whole.requests(), "kept answers are not asked for again");
    assert!(asked >= 8);
    assert_eq!(sandbox.text("cut/prompts.txt"), sandbox.text("whole/prompts.txt"));
    assert_eq!(sandbox.text("cut/rejected.jsonl"), sandbox.text("whole/rejected.jsonl"));
}

fn line_url(line: &str) -> String {
    line.split_once("openai:").unwrap().1.split_whitespace().next().unwrap().to_string()
}

/// A demo of a few seconds.
const DEMO: &str = r#"
extends = "clouds-demo"
[demo]
start_iterations = 2
test_scenes = 2
[render-street]
count = 8
width = 128
height = 64
[prompts]
count = 10
[generate]
count = 4
steps = 2
width = 128
height = 64
[train]
warmup_iterations = 1
joint_iterations = 2
batch_size = 2
checkpointing_steps = 1
[train.loss]
points = 64
[train.data]
initial_size = { height = 64, width = 128 }
[train.crop]
height = 64
width = 128
"#;

#[test]
fn the_demo_scores_every_unseen_look_and_goes_on() {
    let sandbox = Sandbox::new();
    sandbox.write("tiny.toml", DEMO.as_bytes());
    let result: serde_json::Value =
        serde_json::from_str(&ok(&sandbox, "demo --recipe tiny.toml --output demo --json --quiet")).unwrap();
    for segmenter in ["source_only", "joint"] {
        for look in ["night", "fog", "rain", "snow", "all"] {
            assert!(
                result[segmenter][look].as_f64().is_some_and(|miou| (0.0..=1.0).contains(&miou)),
                "{segmenter} {look}: {result}"
            );
        }
    }
    let scored = sandbox.text("demo/joint/scores/unseen-val.json");
    assert!(scored.contains("\"images\": 8") || scored.contains("\"images\":8"), "{scored}");
    assert!(sandbox.text("demo/report.html").contains("source-only"));
    // The CLIP inside the program stays as it is.
    assert!(sandbox.text("demo/joint/recipe.toml").contains("freeze_backbone = true"));
    let before = sandbox.read("demo/joint/segmenter.safetensors");
    std::fs::remove_file(sandbox.path("demo/joint.done")).unwrap();
    let again = outcome(&mut clouds(&sandbox, "demo --recipe tiny.toml --output demo --no-progress"));
    assert!(again.stderr.contains("[10/10]") && !again.stderr.contains("[9/10]"), "{}", again.stderr);
    assert!(sandbox.read("demo/joint/segmenter.safetensors") == before);
}

#[test]
fn the_small_sam_inside_outlines_drawn_streets() {
    let sandbox = Sandbox::new();
    sandbox.ok("dataset render-street --count 2 --look fog --seed 77 --width 256 --height 128 --output fog");
    let line = "masks fog/images --refiner nano --set automatic.points_per_side=8 --output";
    let strict = outcome(&mut clouds(&sandbox, &format!("{line} strict")));
    assert_eq!(strict.status.code(), Some(0), "{}", strict.stderr);
    assert!(strict.stderr.contains("no masks: ") && strict.stderr.contains("for `nano`: 0.4 and 0.7"), "{}", strict.stderr);
    let lower = "--set automatic.pred_iou_thresh=0.4 --set automatic.stability_score_thresh=0.7 --json";
    let drawn: serde_json::Value = serde_json::from_str(&ok(&sandbox, &format!("{line} masks {lower}"))).unwrap();
    let counts: Vec<u64> = drawn["masks"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).collect();
    assert!(counts.len() == 2 && counts.iter().all(|count| *count > 4), "{drawn}");
}
