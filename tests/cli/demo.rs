//! `datum demo`

use super::support::{Sandbox, checked};
use serde_json::Value;
use std::process::Command;

/// A demo of a few seconds.
const TINY: &str = r#"
extends = "demo"
[demo]
start_iterations = 2
test_scenes = 3
[render-street]
count = 8
width = 64
height = 32
[personalize]
resolution = 32
crop_size = 32
steps = 12
num_class_images = 4
checkpointing_steps = 1
[generate]
count = 8
steps = 2
width = 64
height = 32
[adapt]
iterations = 2
workers = 1
checkpointing_steps = 1
warmup = 0
rare_class_min_pixels = 1
source_size = { height = 32, width = 64 }
target_size = { height = 32, width = 64 }
test_size = { height = 32, width = 64 }
crop = { height = 32, width = 64 }
"#;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("tiny.toml", TINY.as_bytes());
    sandbox
}

#[test]
fn the_demo_ends_with_scores_of_both_segmenters_and_a_report() {
    let sandbox = sandbox();
    let demo = sandbox.ok("demo --recipe tiny.toml --output demo --json");
    let result: Value = serde_json::from_str(&demo.stdout).unwrap();
    for segmenter in ["source_only", "adapted"] {
        let scores = &result[segmenter];
        assert!(scores["mIoU"].as_f64().is_some_and(|miou| (0.0..=1.0).contains(&miou)), "{segmenter}: {scores}");
        assert_eq!((scores["classes"].as_array().map(Vec::len), scores["images"].as_u64()), (Some(19), Some(3)));
    }
    assert!(result["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert!(sandbox.text(result["report"].as_str().unwrap()).contains("source-only"));
    // Every fifth picture of the target set is the photo.
    let pictures = sandbox.contents("demo/pseudo-target");
    assert_eq!(pictures.len(), 10);
    assert_eq!(pictures.values().filter(|bytes| **bytes == sandbox.read("demo/photo/images/000000.png")).count(), 2);
    // The commands are shown, and work when they are typed.
    let shown = demo.stderr.lines().find(|line| line.starts_with("$ datum generate ")).unwrap().to_string();
    let again = sandbox.ok(shown.trim_start_matches("$ datum "));
    assert!(again.stderr.contains("8 of 8 images are there already"), "{}", again.stderr);
    let other = "demo --recipe tiny.toml --output demo --seed 1";
    sandbox.fails(other, 2, &["other settings", "next: give the same ones"]);
}

#[test]
fn a_stopped_demo_goes_on() {
    let sandbox = sandbox();
    let line = "demo --recipe tiny.toml --output demo --no-progress";
    let child = sandbox.started(line, "demo/personalize/checkpoints/step-000001");
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    checked(child).failed(line, 130, &["datum demo --output demo"]);
    assert!(!sandbox.has("demo/personalize.done"));
    let rest = sandbox.ok(line);
    assert!(rest.stderr.contains("goes on after step") && !rest.stderr.contains("[1/"), "{}", rest.stderr);
    sandbox.ok("demo --recipe tiny.toml --output whole --no-progress");
    for file in ["personalize/model/unet/diffusion_pytorch_model.safetensors", "adapted/segmenter.safetensors"] {
        assert!(sandbox.read(&format!("demo/{file}")) == sandbox.read(&format!("whole/{file}")), "{file}");
    }
}
