//! Killed and interrupted runs go on to the same bits.

use super::support::{ADAPT, PERSONALIZE, PRETRAIN, Sandbox, checked, lines};
use std::process::Command;

const EVERY_STEP: &str = "--set checkpointing_steps=1";

/// Kills `line` once `file` is there, resumes it and compares `results` with those of an uninterrupted run.
fn survives_a_kill(line: &str, files: &[&str], results: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{line} --output whole"));
    let resume = format!("{line} {EVERY_STEP} --resume latest --output cut");
    for (index, file) in files.iter().enumerate() {
        let first = format!("{line} {EVERY_STEP} --output cut");
        sandbox.killed(if index == 0 { &first } else { &resume }, &format!("cut/{file}"));
        assert!(results.iter().take(1).all(|result| !sandbox.has(&format!("cut/{result}"))));
    }
    let resumed = sandbox.ok(&resume);
    assert!(resumed.stderr.contains("goes on after step"), "{}", resumed.stderr);
    for result in results {
        let (whole, cut) = (sandbox.contents(&format!("whole/{result}")), sandbox.contents(&format!("cut/{result}")));
        assert!(!whole.is_empty() && whole.keys().eq(cut.keys()), "{result}");
        assert!(whole == cut, "{result} differs");
    }
    sandbox
}

#[test]
fn pretrain_survives_kills_in_both_stages() {
    let options = "--labels set/labels --set unet.weighting_scheme=logit_normal --set vae.equivariance=0.5 \
                   --set unet.class_weights=[1,1,1,1,1,1,3,3,1,1,1,8,8,2,3,3,3,6,6]";
    let line = format!("{PRETRAIN} --set vae.steps=12 --set unet.steps=12 {options}");
    let files = ["checkpoints/vae/step-000002", "checkpoints/unet/step-000002"];
    let sandbox = survives_a_kill(&line, &files, &["model", "metrics-vae.jsonl", "metrics-unet.jsonl"]);
    let longer = line.replace("unet.steps=12", "unet.steps=13");
    sandbox.fails(&format!("{longer} --resume latest --output cut"), 3, &["`unet.steps` was 12, now 13"]);
    assert!(sandbox.text("cut/recipe.toml").contains("steps = 12"), "a refused resume keeps the recipe");
    assert!(!sandbox.text("cut/recipe.toml").contains("steps = 13"));
    // A checkpoint of one stage, and the run folder itself, can be named.
    let model = sandbox.contents("cut/model");
    for path in ["whole/checkpoints/unet/step-000012", "whole/checkpoints/vae/step-000012", "whole"] {
        sandbox.ok(&format!("{line} --resume {path}"));
        assert!(sandbox.contents("whole/model") == model, "{path}");
    }
}

#[test]
fn personalize_survives_a_kill() {
    let line = format!("{PERSONALIZE} --steps 12");
    let sandbox = survives_a_kill(&line, &["checkpoints/step-000002"], &["model", "metrics.jsonl"]);
    assert!(sandbox.has("cut/checkpoints/usable-000001/model/model_index.json"));
    sandbox.ok(&format!("{line} --steps 13 --resume latest --output cut").replace("--steps 12 ", ""));
    assert_eq!(lines(&sandbox.path("cut/metrics.jsonl")).len(), 13, "more steps go on");
    assert!(sandbox.text("cut/recipe.toml").contains("steps = 13"));
}

#[test]
fn low_rank_updates_survive_a_kill() {
    let line =
        format!("{PERSONALIZE} --method lora --steps 20 --with-prior-preservation --class-prompt street --num-class-images 2");
    let sandbox = survives_a_kill(
        &line,
        &["checkpoints/step-000002"],
        &["pytorch_lora_weights.safetensors", "base.txt", "metrics.jsonl", "class-images"],
    );
    let other = format!("{line} --rank 2 --resume latest --output cut");
    sandbox.fails(&other, 3, &["`rank` was 4, now 2", "recipe.toml"]);
    assert!(sandbox.text("cut/recipe.toml").contains("rank = 4"), "a refused resume keeps the recipe");
}

#[test]
fn adapt_survives_a_kill() {
    let line = format!("{ADAPT} --target photos --iterations 6");
    let sandbox = survives_a_kill(&line, &["checkpoints/step-000002"], &["segmenter.safetensors", "metrics.jsonl"]);
    let longer = format!("{ADAPT} --target photos --iterations 7 --resume latest --output cut");
    sandbox.fails(&longer, 3, &["`iterations` was 6, now 7"]);
    let other = format!("{line} --set crop.height=24 --resume latest --output cut").replace("--set crop.height=32", "");
    sandbox.fails(&other, 3, &["`crop.height` was 32, now 24"]);
    let again = sandbox.ok(&format!("{line} --resume latest --output cut"));
    assert_eq!(again.stdout, "cut/segmenter.safetensors\n", "a finished run is left as it is");
}

#[test]
fn seeds_are_trained_one_by_one() {
    let sandbox = Sandbox::new();
    let line = format!("{ADAPT} --target photos --iterations 4");
    sandbox.ok(&format!("{line} --seed 3 --output alone"));
    let both = sandbox.ok(&format!("{line} --seeds 0,3 --output both"));
    assert_eq!(both.stdout, "both/seed-0/segmenter.safetensors\nboth/seed-3/segmenter.safetensors\n");
    let trained = |run: &str| sandbox.read(&format!("{run}/segmenter.safetensors"));
    assert!(trained("alone") == trained("both/seed-3"));
    assert!(trained("both/seed-0") != trained("both/seed-3"));
    std::fs::remove_dir_all(sandbox.path("both/seed-3")).unwrap();
    sandbox.ok("report both");
    assert!(sandbox.text("both/report.html").contains("not finished (1 of 2 seeds)"));
    sandbox.ok(&format!("{line} --seeds 0,3 --output both --resume latest"));
    assert!(trained("alone") == trained("both/seed-3"), "what is missing is trained");
    sandbox.fails(&format!("{line} --seeds 0,3 --resume latest --output alone"), 3, &["a run of `adapt --seeds`", "--output"]);
    let score = |checkpoint: &str| -> serde_json::Value {
        let line = format!("evaluate --checkpoint {checkpoint} --dataset set.toml --json -q");
        serde_json::from_str(&sandbox.ok(&line).stdout).unwrap()
    };
    let (series, alone) = (score("both"), score("alone"));
    assert_eq!((&series["seeds"][1]["seed"], &series["seeds"][1]["mIoU"]), (&3.into(), &alone["mIoU"]));
    let mean = (series["seeds"][0]["mIoU"].as_f64().unwrap() + alone["mIoU"].as_f64().unwrap()) / 2.0;
    assert!((series["mIoU"].as_f64().unwrap() - mean).abs() < 1e-12 && series["sd"]["mIoU"].is_number(), "{series}");
    let table = sandbox.ok("evaluate --checkpoint both --dataset set.toml --overlays seen");
    assert!(table.stdout.contains(" ± ") && table.stdout.trim_end().ends_with("mean ± sd of seeds 0, 3"), "{}", table.stdout);
    assert_eq!(sandbox.contents("seen/seed-3").len(), 4);
    std::fs::remove_file(sandbox.path("both/seed-3/segmenter.safetensors")).unwrap();
    sandbox.fails("evaluate --checkpoint both --dataset set.toml", 3, &["both/seed-3", "--resume latest"]);
    let one = format!("{line} --seeds 0,3 --resume both/seed-0/checkpoints/step-000002");
    sandbox.fails(&one, 2, &["goes on with a whole run"]);
}

#[test]
fn generate_survives_a_kill() {
    let line = "generate --prompts things.txt --model base --steps 3 --count 40";
    let sandbox = Sandbox::new();
    sandbox.ok(&format!("{line} --output whole"));
    sandbox.killed(&format!("{line} --output cut"), "cut/images/im_2_p2.png");
    sandbox.ok(&format!("{line} --output cut"));
    assert!(sandbox.contents("whole/images") == sandbox.contents("cut/images"));
}

#[test]
fn ctrl_c_saves_and_ends_with_130() {
    let sandbox = Sandbox::new();
    let line = format!("{PERSONALIZE} --method lora --steps 100 --set checkpointing_steps=0");
    sandbox.ok(&format!("{line} --output whole"));
    let child = sandbox.started(&format!("{line} --output cut"), "cut/metrics.jsonl");
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    let parts = ["interrupted; the state is saved", "--resume latest"];
    checked(child).failed("SIGINT", 130, &parts);
    let done = lines(&sandbox.path("cut/metrics.jsonl")).len();
    assert!(done < 100 && sandbox.has(&format!("cut/checkpoints/step-{done:06}/state.json")));
    let resumed = sandbox.ok(&format!("{line} --resume latest --output cut"));
    assert!(resumed.stderr.contains(&format!("goes on after step {done} of 100")), "{}", resumed.stderr);
    for file in ["pytorch_lora_weights.safetensors", "metrics.jsonl"] {
        assert!(sandbox.read(&format!("whole/{file}")) == sandbox.read(&format!("cut/{file}")), "{file}");
    }
}

#[test]
fn a_training_does_not_go_on_with_other_pictures() {
    let sandbox = Sandbox::new();
    let line = format!("{ADAPT} --strategy source-only --iterations 2 --set checkpointing_steps=1 --output out");
    sandbox.ok(&line);
    let picture = sandbox.read("set/images/p0.png");
    sandbox.write("set/images/p7.png", &picture);
    let label = sandbox.read("set/labels/p0.png");
    sandbox.write("set/labels/p7.png", &label);
    sandbox.fails(&format!("{line} --resume latest"), 3, &["`pictures.source` was \"4 pictures (", "now \"5 pictures ("]);
}

#[test]
fn a_run_folder_belongs_to_one_process() {
    let sandbox = Sandbox::new();
    let line = format!("{PERSONALIZE} --method lora --steps 4000 --set checkpointing_steps=0");
    let mut child = sandbox.started(&format!("{line} --output out"), "out/metrics.jsonl");
    let locked = ["another process works in out", "--output"];
    sandbox.fails(&format!("{line} --resume latest --output out"), 4, &locked);
    sandbox.fails(&format!("{line} --output out"), 4, &locked);
    child.kill().unwrap();
    child.wait().unwrap();
    sandbox.fails(&format!("{line} --output out"), 2, &["out is not empty", "--resume latest"]);
}

#[test]
fn resuming_nothing_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.fails(
        &format!("{PERSONALIZE} --resume latest"),
        3,
        &["a run of `personalize` to resume", "start without `--resume`"],
    );
    sandbox.fails(&format!("{PERSONALIZE} --resume nowhere"), 3, &["nowhere", "a run folder"]);
    sandbox.fails(&format!("{PERSONALIZE} --resume photos"), 3, &["photos", "a run folder"]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let sandbox = Sandbox::new();
    let line = format!("{PERSONALIZE} --method lora --steps 3 {EVERY_STEP} --set keep_last=9");
    sandbox.ok(&format!("{line} --output out"));
    let result = sandbox.read("out/pytorch_lora_weights.safetensors");
    let path = "out/checkpoints/step-000003/weights.safetensors";
    let bytes = sandbox.read(path);
    sandbox.write(path, &bytes[..bytes.len() / 2]);
    let resumed = sandbox.ok(&format!("{line} --resume latest --output out"));
    assert!(resumed.stderr.contains("checkpoint of step 3 is damaged"), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("goes on after step 2 of 3"), "{}", resumed.stderr);
    assert!(sandbox.read("out/pytorch_lora_weights.safetensors") == result);
}
